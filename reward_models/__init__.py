"""Rewards that ship with the workbench, one file per family, and the commands `serve` and `compare`."""

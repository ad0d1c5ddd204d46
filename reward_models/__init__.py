"""Rewards that ship with the workbench, one file a family, and the commands `serve` and `compare`."""

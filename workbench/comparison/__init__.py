"""Finished runs beside each other: what can be compared, how they differ, and algorithms over several seeds."""

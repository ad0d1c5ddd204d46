"""The configuration: its schema, how it is read and checked, and its reference page."""

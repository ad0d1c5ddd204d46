"""Rows from files and the hub, and the prompts made from them."""

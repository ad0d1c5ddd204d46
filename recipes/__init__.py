"""What a user runs and copies: one file per stage, read top to bottom."""

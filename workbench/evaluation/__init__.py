"""Answers of several models to the same prompts, what they are worth, and what may be said of their difference."""

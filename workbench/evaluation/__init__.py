"""Completions of several models to the same prompts, their scores, and whether the differences are significant."""

"""Completions of several models to the same prompts, their scores, and what the differences prove."""

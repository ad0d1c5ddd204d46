"""Training of a reward model: its rows, its loop, and the report on what it learned."""

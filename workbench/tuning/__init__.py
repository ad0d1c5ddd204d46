"""Compare ways to tune a model: what each learns, what it forgets, and what it costs."""

"""Compare prompts for one model: templates, numbers of examples, ways to generate."""

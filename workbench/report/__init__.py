"""Self-contained HTML pages, and Markdown; both show the same typed results."""

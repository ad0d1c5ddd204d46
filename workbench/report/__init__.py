"""Pages of HTML that stand alone, and Markdown: both show the same typed results."""

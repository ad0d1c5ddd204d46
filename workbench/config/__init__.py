"""The configuration: its schema, and how it is read, checked and with_token_log_ratios."""

"""One prompt, completed by every model of a run with the same random numbers: a local page, or plain text."""

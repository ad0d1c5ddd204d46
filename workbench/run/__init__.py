"""Infrastructure shared by all commands: run folders, files, processes, progress."""

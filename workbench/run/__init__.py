"""What every command does around its work: run folders, files, processes, progress."""

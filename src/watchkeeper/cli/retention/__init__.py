"""`watchkeeper retention`: a file for each command, or for a few related ones."""

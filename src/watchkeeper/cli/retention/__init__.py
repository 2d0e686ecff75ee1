"""`watchkeeper retention`: one file a command."""

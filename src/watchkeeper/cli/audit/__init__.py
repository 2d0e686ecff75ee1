"""`watchkeeper audit`: one file a command."""

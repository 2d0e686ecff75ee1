"""`watchkeeper audit`: one file per command."""

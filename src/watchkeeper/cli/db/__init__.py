"""`watchkeeper db`: one file a command."""

"""`watchkeeper db`: one file per command."""

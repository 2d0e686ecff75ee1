"""The archive that rows are written to before they are deleted, and restored from."""

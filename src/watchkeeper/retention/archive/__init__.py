"""Rows written to an archive before they are deleted, and restored from it."""

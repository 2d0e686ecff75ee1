"""Secrets that may not leave in a line."""

"""Masking of secrets in text, URLs and values."""

"""Bridges that turn other log sources into lines: structlog, the standard library, uncaught exceptions."""

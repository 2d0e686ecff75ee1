"""Real input: a client that plays traffic, and checks the metrics against its own count."""

from realestate.traffic._command import main

__all__ = ["main"]

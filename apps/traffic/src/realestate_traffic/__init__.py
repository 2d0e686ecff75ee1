"""A client of the Real Estate backend: sends traffic and checks the metrics against its own count."""

__version__ = "0.1.0"

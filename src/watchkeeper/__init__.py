"""Watchkeeper keeps watch over an ASGI service (logs, metrics, health, alerts) and keeps house for it."""

__version__ = "0.1.0"

"""Runs a service's ASGI server, and handles signals, draining and the exit code."""

from watchkeeper.server._server import serve

__all__ = ["serve"]

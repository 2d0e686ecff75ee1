"""Watchkeeper's entry point for a service, in charge of signals, draining and the exit code."""

from watchkeeper.server._server import serve

__all__ = ["serve"]

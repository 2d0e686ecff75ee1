"""Watchkeeper's own entry point for a service: it owns the signals, the drain and the exit code."""

from __future__ import annotations

from watchkeeper.server._server import serve

__all__ = ["serve"]

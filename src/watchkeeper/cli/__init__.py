"""The operator's commands in the terminal."""

from __future__ import annotations

from watchkeeper.cli._main import main

__all__ = ["main"]

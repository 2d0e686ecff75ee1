"""The command-line interface for operators: one package per group."""

from __future__ import annotations

from watchkeeper.cli._main import main

__all__ = ["main"]

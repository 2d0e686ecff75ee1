"""Checks of what a service depends on, and the runner that bounds and caches them."""

from __future__ import annotations

from watchkeeper.health._bounded import BoundedCall, SharedCall
from watchkeeper.health._checks import DATABASE_CHECK, Check, CheckResult, UnhealthyError
from watchkeeper.health._http import HttpCheck
from watchkeeper.health._runner import CheckRunner

__all__ = [
    "DATABASE_CHECK",
    "BoundedCall",
    "Check",
    "CheckResult",
    "CheckRunner",
    "HttpCheck",
    "SharedCall",
    "UnhealthyError",
]

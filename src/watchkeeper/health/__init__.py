"""Checks of what a service depends on, and the runner that bounds and caches them."""

from __future__ import annotations

from watchkeeper.health._checks import Check, CheckResult, UnhealthyError
from watchkeeper.health._http import HttpCheck

__all__ = ["Check", "CheckResult", "HttpCheck", "UnhealthyError"]

"""Checks of what a service depends on, and the runner that bounds and caches them."""

from watchkeeper.health._checks import Check, CheckResult, UnhealthyError
from watchkeeper.health._http import HttpCheck

__all__ = ["Check", "CheckResult", "HttpCheck", "UnhealthyError"]

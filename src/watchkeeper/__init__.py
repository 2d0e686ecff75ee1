"""Watchkeeper monitors an ASGI service (logs, metrics, health, alerts) and runs its data retention."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from watchkeeper.database import MigrationSource
    from watchkeeper.health import Check, HttpCheck
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import Policy
    from watchkeeper.server import serve
    from watchkeeper.settings import Secret, Settings

__version__ = "0.1.0"

__all__ = [
    "Check",
    "HttpCheck",
    "MigrationSource",
    "Policy",
    "Secret",
    "Settings",
    "Watchkeeper",
    "__version__",
    "serve",
]

# Imported on first use: a service without retention needs no extra and pays for no import.
_MODULES: Final = {
    "Check": "watchkeeper.health",
    "HttpCheck": "watchkeeper.health",
    "MigrationSource": "watchkeeper.database",
    "Policy": "watchkeeper.retention",
    "Secret": "watchkeeper.settings",
    "Settings": "watchkeeper.settings",
    "Watchkeeper": "watchkeeper.keeper",
    "serve": "watchkeeper.server",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'watchkeeper' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__

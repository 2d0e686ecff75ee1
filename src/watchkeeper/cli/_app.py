"""Finds the service's keeper by the name that the operator gives."""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.keeper import Watchkeeper

if TYPE_CHECKING:
    from types import ModuleType

VARIABLE: Final = "WATCHKEEPER_APP"


def find_keeper(name: str | None) -> Watchkeeper:
    """Import `module:attribute`, a keeper or a function that returns one; default `WATCHKEEPER_APP`."""
    name = name or os.environ.get(VARIABLE)
    if not name:
        raise ConfigurationError(
            f"Name the service's keeper by --app module:attribute, or by {VARIABLE} in the environment."
        )
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise ConfigurationError(
            f"{name!r} does not name a keeper: write it like realestate.monitoring:keeper."
        )
    found = getattr(_import(path), attribute, None)
    if found is None:
        raise ConfigurationError(f"The module {path} has no {attribute}.{_suggest(path, attribute)}")
    keeper = found() if callable(found) else found
    if not isinstance(keeper, Watchkeeper):
        raise ConfigurationError(f"{name} is a {type(keeper).__name__}, not a Watchkeeper.")
    return keeper


def _import(path: str) -> ModuleType:
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)  # as `python -m` does: the service may not be installed
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"There is no module {error.name}: run this in the service's folder, or install the service."
        ) from error


def _suggest(path: str, attribute: str) -> str:
    near = difflib.get_close_matches(attribute, vars(sys.modules[path]), n=1)
    return f" Did you mean {path}:{near[0]}?" if near else ""

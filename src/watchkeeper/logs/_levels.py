"""The six levels of a line, and every name that an operator may use for them."""

from __future__ import annotations

import difflib
from typing import Final

from watchkeeper.exceptions import ConfigurationError

LEVELS: Final = {"trace": 5, "debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50}
"""The labels in rising order, with the number that the standard library's logging uses for each."""

ALIASES: Final = {
    **{name: name for name in LEVELS},
    "notset": "trace",
    "warning": "warn",
    "exception": "error",
    "critical": "fatal",
}


def parse_level(value: str) -> str:
    """Return the level that `value` names.

    Args:
        value: One of the contract's names or of Python's, in any case.

    Raises:
        ConfigurationError: There is no such level; the message lists them and names the nearest.
    """
    name = value.strip().lower()
    if name in ALIASES:
        return ALIASES[name]
    near = difflib.get_close_matches(name, ALIASES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigurationError(
        f"LOG_LEVEL takes one of {', '.join(LEVELS)} (Python's names too, such as WARNING).{hint}"
    )


def label_of(number: int) -> str:
    """Return the label for a level number of the standard library, which may lie between two levels."""
    if number >= 40:
        return "fatal" if number >= 50 else "error"
    if number >= 20:
        return "warn" if number >= 30 else "info"
    return "debug" if number >= 10 else "trace"

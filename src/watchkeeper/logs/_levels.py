"""The six levels of a line, and all names for them that are accepted."""

from __future__ import annotations

import difflib
from typing import Final

from watchkeeper.exceptions import ConfigurationError

LEVELS: Final = {"trace": 5, "debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50}
"""Each level in rising order, with its number in the standard library's logging."""

ALIASES: Final = {
    **{name: name for name in LEVELS},
    "notset": "trace",
    "warning": "warn",
    "exception": "error",
    "critical": "fatal",
}


def parse_level(value: str) -> str:
    """Return the level with this name, one of ours or of Python's, or raise `ConfigurationError`."""
    name = value.strip().lower()
    if name in ALIASES:
        return ALIASES[name]
    near = difflib.get_close_matches(name, ALIASES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigurationError(
        f"LOG_LEVEL takes one of {', '.join(LEVELS)} (Python's names too, such as WARNING).{hint}"
    )


def level_of(number: int) -> str:
    """Return the level of one of logging's numbers; between two levels it is the lower one."""
    if number >= 40:
        return "fatal" if number >= 50 else "error"
    if number >= 20:
        return "warn" if number >= 30 else "info"
    return "debug" if number >= 10 else "trace"

"""The time of a line: ISO 8601, UTC, milliseconds, Z."""

from __future__ import annotations

import time
from typing import Final

_MILLISECONDS: Final = tuple(f".{number:03d}Z" for number in range(1000))
_known: tuple[int, str] = (-1, "")


def timestamp() -> str:
    """Return the time now; the part down to the second is made once a second."""
    global _known  # noqa: PLW0603 - one tuple, replaced whole: safe from threads
    now = time.time()
    second = int(now)
    known = _known
    if known[0] != second:
        known = _known = (second, calendar(second))
    return known[1] + _MILLISECONDS[int((now - second) * 1000)]


def calendar(second: int) -> str:
    """Return the date and time of a second since the epoch, without its fraction and zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))

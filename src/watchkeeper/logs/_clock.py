"""The time of a line: ISO 8601, UTC, with milliseconds and `Z`."""

from __future__ import annotations

import time
from typing import Final

_FRACTIONS: Final = tuple(f".{number:03d}Z" for number in range(1000))
_last: tuple[int, str] = (-1, "")


def timestamp() -> str:
    """Return the time now; the part down to the second is formatted once per second."""
    global _last  # noqa: PLW0603 - one tuple, replaced as a whole: safe between threads
    now = time.time()
    second = int(now)
    last = _last
    if last[0] != second:
        last = _last = (second, format_second(second))
    return last[1] + _FRACTIONS[int((now - second) * 1000)]


def format_second(second: int) -> str:
    """Return the date and time of a second since the epoch, without fraction and zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))

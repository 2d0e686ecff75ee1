"""Human-readable durations, sizes and row counts."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

# Control characters, and those that change the direction of writing.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_KIB: Final = 1024
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600


def format_duration(duration: timedelta) -> str:
    """Return a duration in seconds, minutes or hours."""
    seconds = duration.total_seconds()
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.1f} min"
    return f"{seconds / _HOUR_S:.1f} h"


def format_bytes(count: int) -> str:
    """Return a number of bytes in the largest unit that fits."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < _KIB:
            return f"{size:.0f} {unit}"
        size /= _KIB
    return f"{size:.1f} TiB"


def format_days(duration: timedelta) -> str:
    """Return a duration in days."""
    count = duration / timedelta(days=1)
    return f"{count:g} day{'' if count == 1 else 's'}"


def format_rows(count: int) -> str:
    """Return a number of rows."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Escape what would control the terminal, such as ANSI sequences in a payload."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def drop_subject(table: str, sentence: str) -> str:
    """Return a sentence without its subject, to follow the table's name: `carts is paused` -> `paused`."""
    return sentence.removeprefix(f"{table} is ")

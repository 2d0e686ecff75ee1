"""When a scheduled run is attempted, and attempted again."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

RETRY_WAITS: Final = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=25))
"""How long after a failed attempt the next one starts; after the last one, the next scheduled run does."""


def next_attempt(rows: list[dict[str, Any]], due_at: datetime) -> int | None:
    """Return the number of the attempt that may start now; None if none may.

    A run that was stopped in order continues at once; one that failed is tried again after growing waits; one
    that completed, was refused or was cancelled is not.

    Args:
        rows: The attempts at this scheduled time or a later one, the latest last; one row without an attempt
            if there was none, no row if the policy may not run at all.
        due_at: The scheduled time.
    """
    if not rows or due_at <= rows[0]["since"] or any(row["due_at"] not in {None, due_at} for row in rows):
        return None  # not registered, scheduled before it was declared, or a later time was run already
    tried = [row for row in rows if row["attempt"] is not None]
    if not tried:
        return 1
    last = tried[-1]
    if last["state"] == "stopped":
        return int(last["attempt"]) + 1
    failures = sum(row["state"] == "failed" for row in tried)
    if last["state"] != "failed" or failures > len(RETRY_WAITS):
        return None
    waited = last["now"] - last["finished_at"] >= RETRY_WAITS[failures - 1]
    return int(last["attempt"]) + 1 if waited else None

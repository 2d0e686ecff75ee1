"""When a scheduled run is attempted and retried."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

RETRY_WAITS: Final = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=25))
"""The wait after each failed attempt; after the last one the policy waits for its next scheduled time."""


def next_attempt(rows: list[dict[str, Any]], due_at: datetime) -> int | None:
    """Return the number of the attempt that may start now; None if none may.

    `rows` has the attempts at this scheduled time and at later ones, the latest last: one row without an
    attempt if there are none, no row if the policy is not registered.
    """
    if not rows or due_at <= rows[0]["since"] or any(row["due_at"] not in {None, due_at} for row in rows):
        return None  # not registered; older than the policy; or a later time was tried
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

"""What the supervisor hears from its parent, and what it tells it."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class StoppedError(Exception):
    """The parent is gone, or a signal asked for the end: the server is to stop."""


class FailedError(Exception):
    """The server cannot be started.

    Args:
        stage: What was tried.
        code: Exit status of the program, None when it never ran.
        log: Its last lines.
    """

    def __init__(self, stage: str, code: int | None, log: Iterable[str]) -> None:
        super().__init__(stage)
        self.event = {"event": "failed", "stage": stage, "code": code, "log": list(log)}


def read_spec() -> dict[str, Any]:
    """Read the first line of stdin; nothing comes behind it.

    Raises:
        StoppedError: The parent ended before it had written it.
    """
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 65536)
        if not chunk:
            raise StoppedError
        line += chunk
    spec: dict[str, Any] = json.loads(line)
    return spec


def send_event(event: dict[str, Any]) -> None:
    """Send the parent an event; a parent that is gone or does not read misses it."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")

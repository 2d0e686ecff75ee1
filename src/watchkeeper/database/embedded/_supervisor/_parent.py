"""The supervisor's communication with its parent."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class StoppedError(Exception):
    """The parent has ended, or a signal asked to stop the server."""


class FailedError(Exception):
    """The server cannot be started; `event` says at which stage, with the program's exit status and log."""

    def __init__(self, stage: str, code: int | None, log: Iterable[str]) -> None:
        super().__init__(stage)
        self.event = {"event": "failed", "stage": stage, "code": code, "log": list(log)}


def read_spec() -> dict[str, Any]:
    """Read the spec from stdin, or raise `StoppedError` if the parent ended before it had written it."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 65536)
        if not chunk:
            raise StoppedError
        line += chunk
    spec: dict[str, Any] = json.loads(line)
    return spec


def send_event(event: dict[str, Any]) -> None:
    """Send the parent an event; one that has ended or does not read misses it."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")

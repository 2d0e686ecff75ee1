"""The server's log: a file of bounded size, and its last lines in memory."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT_BYTES: Final = 4 << 20
_TAIL_LINES: Final = 40
_MAX_LINE_LENGTH: Final = 2000  # in memory and in events, which need not carry a statement of a megabyte


class ServerLog:
    """Writes the server's output to `path`; a file over `limit_bytes` replaces `path`.1."""

    def __init__(self, path: Path, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self._size = 0
        self._fd = -1
        self._partial = b""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def tail(self) -> list[str]:
        """The last lines of the current program."""
        return list(self._tail)

    def begin(self) -> None:
        """Forget the lines of the previous program."""
        self._tail.clear()
        self._partial = b""

    def write(self, chunk: bytes) -> None:
        """Append `chunk`; where writing fails, only the lines in memory remain."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self._tail.extend(line.decode("utf-8", "replace")[:_MAX_LINE_LENGTH] for line in lines)
        with contextlib.suppress(OSError):
            if self._fd < 0 or self._size > self._limit:
                self._open()
            self._size += os.write(self._fd, chunk)

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.replace(f"{self._path}.1")
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

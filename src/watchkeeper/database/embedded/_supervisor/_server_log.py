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
_LONGEST_LINE: Final = 2000  # in memory; a statement of a megabyte need not travel to the parent


class ServerLog:
    """Takes what the server writes.

    Args:
        path: The file; once it is over 4 MiB it becomes `path`.1, in place of the one before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._fd = -1
        self._partial = b""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def tail(self) -> list[str]:
        """The last lines of the program that runs."""
        return list(self._tail)

    def begin(self) -> None:
        """Forget the lines of the program before."""
        self._tail.clear()
        self._partial = b""

    def write(self, chunk: bytes) -> None:
        """Keep `chunk`; what the disk does not take is in memory only."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self._tail.extend(line.decode("utf-8", "replace")[:_LONGEST_LINE] for line in lines)
        with contextlib.suppress(OSError):
            if self._fd < 0 or self._size > _LIMIT_BYTES:
                self._open()
            self._size += os.write(self._fd, chunk)

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.replace(f"{self._path}.1")
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

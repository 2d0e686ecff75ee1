"""Batches of lines, written in pieces that nobody else's lines get into."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, Final

from watchkeeper.logs.output._long_lines import LongLines
from watchkeeper.logs.output._nonblocking import Outlet

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

_REASONS: Final = {
    errno.EPIPE: "closed",
    errno.EBADF: "closed",
    errno.ECONNRESET: "closed",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "full",
}


class Pieces:
    """Writes to a descriptor in pieces of whole lines of at most PIPE_BUF bytes, one thread at a time.

    The kernel does not mix such a write with others (POSIX, write). A longer line is a piece by itself.

    Args:
        fd: Where to write.
        on_lost: Called with a count and a reason for lines that could not be written.

    Attributes:
        failing: Whether the last lines were lost instead of written.
    """

    def __init__(self, fd: int, on_lost: Callable[[int, str], None]) -> None:
        self.failing = False
        self._outlet = Outlet(fd)
        self._long_lines = LongLines(fd)
        self._on_lost = on_lost
        self._cramped = False  # there was no room for a long line
        self._midline = False  # what was returned last begins within a line
        self._torn = False  # the last thing written is a part of a line, whose rest is lost

    def write(self, batch: bytes, *, aside: bool) -> bytes:
        """Write a batch without waiting.

        Args:
            batch: Whole lines, or first what was returned the last time.
            aside: Whether this thread may be held up for a moment, see `Outlet`.

        Returns:
            What has to wait until there is room.
        """
        size = len(batch)
        if size <= select.PIPE_BUF:
            return self._write_piece(batch, aside)
        start = 0
        while start < size:
            # The last newline within PIPE_BUF ends the piece; a longer line is a piece by itself.
            end = batch.rfind(b"\n", start, start + select.PIPE_BUF) + 1
            end = end or batch.find(b"\n", start) + 1 or size
            write = self._write_piece if end - start <= select.PIPE_BUF else self._write_long
            left = write(batch[start:end], aside)
            if left:
                return left + batch[end:]
            start = end
        return b""

    def wait(self, patience: timedelta) -> None:
        """Wait until it is worth another try, at most this long."""
        if self._cramped:
            self._long_lines.wait()
        else:
            self._outlet.wait(patience)

    def lose(self, piece: bytes, reason: str) -> None:
        """Count lines, of which the first may be a rest, as lost."""
        self._torn = self._torn or self._midline
        self._midline = False
        self.failing = True
        self._on_lost(max(1, piece.count(b"\n")), reason)

    def _write_long(self, line: bytes, aside: bool) -> bytes:  # noqa: FBT001 - as `write` was told
        with self._long_lines.room_for(len(line)) as roomy:
            self._cramped = not roomy
            return self._write_piece(line, aside) if roomy else line

    def _write_piece(self, piece: bytes, aside: bool) -> bytes:  # noqa: FBT001 - as `write` was told
        while True:
            # What is left of a broken line must not spoil the next one.
            data = b"\n" + piece if self._torn else piece
            try:
                written = self._outlet.write_aside(data) if aside else self._outlet.write(data)
            except BlockingIOError:
                self._cramped = False
                return piece
            except OSError as error:
                self._outlet.forget()
                self.lose(piece, _REASONS.get(error.errno or 0, "error"))
                return b""
            self._torn = self.failing = False
            if written == len(data):
                self._midline = False
                return b""
            self._midline = not data.endswith(b"\n", 0, written)
            piece = data[written:]

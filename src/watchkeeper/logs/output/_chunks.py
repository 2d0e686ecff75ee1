"""Batches of lines, written in chunks that other processes' lines cannot break."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, Final

from watchkeeper.logs.output._long_lines import LongLineLock
from watchkeeper.logs.output._nonblocking import NonBlockingWriter

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


class ChunkWriter:
    """Writes lines in chunks of at most PIPE_BUF bytes, never interleaved (POSIX, write); not thread-safe."""

    def __init__(self, fd: int, on_drop: Callable[[int, str], None]) -> None:
        self.failing = False  # whether the last lines were dropped instead of written
        self._writer = NonBlockingWriter(fd)
        self._long_lines = LongLineLock(fd)
        self._on_drop = on_drop
        self._long_line_waits = False
        self._rest_is_partial = False  # the rest that was returned last starts within a line
        self._line_is_cut = False  # the last thing written is the start of a line whose rest was dropped

    def write(self, batch: bytes, *, in_thread: bool) -> bytes:
        """Write whole lines, or what the last call returned; return what must wait for room."""
        size = len(batch)
        if size <= select.PIPE_BUF:
            return self._write_chunk(batch, in_thread)
        start = 0
        while start < size:
            # The last newline within PIPE_BUF ends the chunk; a longer line is a separate chunk.
            end = batch.rfind(b"\n", start, start + select.PIPE_BUF) + 1
            end = end or batch.find(b"\n", start) + 1 or size
            write = self._write_chunk if end - start <= select.PIPE_BUF else self._write_long
            rest = write(batch[start:end], in_thread)
            if rest:
                return rest + batch[end:]
            start = end
        return b""

    def wait(self, timeout: timedelta) -> None:
        """Wait until a retry is worthwhile, at most for `timeout`."""
        if self._long_line_waits:
            self._long_lines.wait()
        else:
            self._writer.wait(timeout)

    def drop(self, lines: bytes, reason: str) -> None:
        """Count lines as dropped; the first may be the rest of one."""
        self._line_is_cut = self._line_is_cut or self._rest_is_partial
        self._rest_is_partial = False
        self.failing = True
        self._on_drop(max(1, lines.count(b"\n")), reason)

    def _write_long(self, line: bytes, in_thread: bool) -> bytes:  # noqa: FBT001 - called through a variable
        with self._long_lines.room_for(len(line)) as has_room:
            self._long_line_waits = not has_room
            return self._write_chunk(line, in_thread) if has_room else line

    def _write_chunk(self, chunk: bytes, in_thread: bool) -> bytes:  # noqa: FBT001 - as above
        while True:
            # End the cut line first, so that it does not spoil this one.
            data = b"\n" + chunk if self._line_is_cut else chunk
            try:
                written = self._writer.write_in_thread(data) if in_thread else self._writer.write(data)
            except BlockingIOError:
                self._long_line_waits = False
                return chunk
            except OSError as error:
                self._writer.reset()
                self.drop(chunk, _REASONS.get(error.errno or 0, "error"))
                return b""
            self._line_is_cut = self.failing = False
            if written == len(data):
                self._rest_is_partial = False
                return b""
            self._rest_is_partial = not data.endswith(b"\n", 0, written)
            chunk = data[written:]

"""Where lines leave the process: whole, in order, batched by the turn of the event loop."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import select
import sys
import threading
import time
import weakref
from asyncio import _get_running_loop
from collections import deque
from contextvars import Context
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.logs._long_lines import room_for

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

PENDING_BYTES: Final = 8 * 1024 * 1024
_PATIENCE: Final = timedelta(milliseconds=250)
_REASONS: Final = {
    errno.EPIPE: "closed",
    errno.EBADF: "closed",
    errno.ECONNRESET: "closed",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "full",
}
DROP_REASONS: Final = ("blocked", "closed", "full", "overflow", "error")


class Sink:
    """Writes whole lines to a file descriptor, from any thread, and never raises.

    Inside a running event loop lines are gathered and written at the end of the loop's turn; elsewhere at
    once. Several processes may share the descriptor: what is written at once is whole lines of at most
    PIPE_BUF bytes, which the kernel does not mix (POSIX, write), and a longer line waits for room.
    The descriptor's flags are left alone: they belong to everybody who shares it.

    Args:
        fd: Where to write; default standard output.
        on_drop: Called with a count and a reason (one of `DROP_REASONS`) for lines that could not be written.
        on_recover: Called with the number of lines dropped since the last call, once writing works again.
        patience: How long to wait for a reader when the descriptor is non-blocking; default 250 ms.
    """

    def __init__(
        self,
        fd: int = 1,
        *,
        on_drop: Callable[[int, str], None] | None = None,
        on_recover: Callable[[int], None] | None = None,
        patience: timedelta = _PATIENCE,
    ) -> None:
        self.dropped = 0
        self.at_once = False  # for a loop that may end before its turn does
        self.on_drop = on_drop
        self.on_recover = on_recover
        # Python found no standard output when it started: by now the number may be somebody's socket.
        self._fd = -1 if fd == 1 and sys.__stdout__ is None else fd
        self._patience = patience.total_seconds()
        self._begin()
        _sinks.add(self)

    def _begin(self) -> None:
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._scheduled: AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._torn = False  # the last thing written is a part of a line
        self._blocked = False  # the reader has used up its patience
        self._unsaid = 0  # lines dropped since writing last worked

    def write(self, line: bytes) -> None:
        """Take one whole line, its newline included; it is written now or at the end of the loop's turn."""
        size = len(line)
        if self._pending_bytes > PENDING_BYTES:
            self._drop(1, "overflow")
            return
        self._pending_bytes += size  # no call between load and store: whole under the GIL
        self._pending.append(line)
        loop = None if self.at_once else _get_running_loop()
        if loop is None:
            self._drain()
        elif loop is not self._scheduled:
            self._scheduled = loop
            # In a context of its own: it must not keep the request's alive, nor be entered by two loops.
            loop.call_soon(self._end_turn, context=Context())

    def flush(self) -> None:
        """Write what is gathered, waiting for a thread that is just doing so (at most the patience)."""
        if self._lock.acquire(timeout=self._patience):
            self._lock.release()
        self._drain()

    def _end_turn(self) -> None:
        self._scheduled = None
        self._drain()

    def _drain(self) -> None:
        # Nobody waits for the lock: who holds it looks again after letting go, so no line is left behind.
        # That also makes it safe to log from a signal handler, from __del__ and from on_drop.
        pending = self._pending
        while pending and self._lock.acquire(blocking=False):
            try:
                while pending:
                    self._write_batch([pending.popleft() for _ in range(len(pending))])
            finally:
                self._lock.release()

    def _write_batch(self, lines: list[bytes]) -> None:
        batch = lines[0] if len(lines) == 1 else b"".join(lines)
        size = len(batch)
        self._pending_bytes -= size
        if size <= select.PIPE_BUF:
            self._write_whole(batch, len(lines))
            return
        start = 0
        while start < size:
            # The last newline within PIPE_BUF ends the piece; a longer line is a piece by itself.
            end = batch.rfind(b"\n", start, start + select.PIPE_BUF) + 1
            end = end or batch.find(b"\n", start) + 1 or size
            piece = batch[start:end]
            if end - start > select.PIPE_BUF:
                self._write_long(piece)
            else:
                self._write_whole(piece, piece.count(b"\n"))
            start = end

    def _write_long(self, line: bytes) -> None:
        with room_for(self._fd, len(line), self._patience) as roomy:
            if roomy:
                self._write_whole(line, 1)
            else:
                self._drop(1, "blocked")

    def _write_whole(self, piece: bytes, lines: int) -> None:
        if self._torn:
            piece = b"\n" + piece  # what is left of a broken line must not spoil the next one
        written = 0
        deadline = 0.0
        while True:
            try:
                written += os.write(self._fd, piece[written:] if written else piece)
            except BlockingIOError:
                deadline = deadline or time.monotonic() + (0 if self._blocked else self._patience)
                if not self._wait_until(deadline):
                    self._blocked = True
                    self._give_up(lines, "blocked", begun=written > 0)
                    return
            except OSError as error:
                self._give_up(lines, _REASONS.get(error.errno or 0, "error"), begun=written > 0)
                return
            else:
                if written == len(piece):
                    self._torn = self._blocked = False
                    if self._unsaid:
                        self._recover()
                    return

    def _wait_until(self, deadline: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _give_up(self, lines: int, reason: str, *, begun: bool) -> None:
        self._torn = self._torn or begun
        self._drop(lines, reason)

    def _drop(self, lines: int, reason: str) -> None:
        self.dropped += lines
        self._unsaid += lines
        if self.on_drop is not None:
            # Whatever counts the drops must not stop the service.
            with contextlib.suppress(Exception):
                self.on_drop(lines, reason)

    def _recover(self) -> None:
        lines, self._unsaid = self._unsaid, 0
        if self.on_recover is not None:
            with contextlib.suppress(Exception):
                self.on_recover(lines)


_sinks: weakref.WeakSet[Sink] = weakref.WeakSet()


def _flush_all() -> None:
    for sink in list(_sinks):
        sink.flush()


def _begin_all() -> None:
    # The child of a fork would write the parent's lines again, and its lock may be held by a thread it lacks.
    for sink in list(_sinks):
        sink._begin()  # noqa: SLF001 - the class and this hook are one


atexit.register(_flush_all)
os.register_at_fork(after_in_child=_begin_all)

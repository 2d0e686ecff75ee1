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
_NOTHING: Final = Context()  # a callback of ours must not keep a request's context alive
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
        patience: How long to wait for a reader when the descriptor is non-blocking; default 250 ms.
    """

    def __init__(
        self,
        fd: int = 1,
        *,
        on_drop: Callable[[int, str], None] | None = None,
        patience: timedelta = _PATIENCE,
    ) -> None:
        self.dropped = 0
        self.on_drop = on_drop
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
        self._torn = False
        self._blocked = False

    def write(self, line: bytes) -> None:
        """Take one whole line, its newline included; it is written now or at the end of the loop's turn."""
        size = len(line)
        if self._pending_bytes > PENDING_BYTES:
            self._drop(1, "overflow")
            return
        self._pending_bytes += size  # no call between load and store: whole under the GIL
        self._pending.append(line)
        loop = _get_running_loop()
        if loop is None:
            self._drain()
        elif loop is not self._scheduled:
            self._scheduled = loop
            loop.call_soon(self._end_turn, context=_NOTHING)

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
        while self._pending and self._lock.acquire(blocking=False):
            try:
                while self._pending:
                    self._put(*self._take())
            finally:
                self._lock.release()

    def _take(self) -> tuple[bytes, int]:
        pending = self._pending
        piece = [pending.popleft()]
        size = len(piece[0])
        while pending and size + len(pending[0]) <= select.PIPE_BUF:
            piece.append(pending.popleft())
            size += len(piece[-1])
        self._pending_bytes = self._pending_bytes - size if pending else 0
        return (piece[0] if len(piece) == 1 else b"".join(piece)), len(piece)

    def _put(self, piece: bytes, lines: int) -> None:
        if self._torn:
            piece = b"\n" + piece  # what is left of a broken line must not spoil the next one
        if len(piece) > select.PIPE_BUF:
            with room_for(self._fd, len(piece), self._patience) as roomy:
                if roomy:
                    self._write_whole(piece, lines)
                else:
                    self._drop(lines, "blocked")
        else:
            self._write_whole(piece, lines)

    def _write_whole(self, piece: bytes, lines: int) -> None:
        left = memoryview(piece)
        deadline = 0.0
        while left:
            try:
                written = os.write(self._fd, left)
            except BlockingIOError:
                deadline = deadline or time.monotonic() + (0 if self._blocked else self._patience)
                if not self._wait_until(deadline):
                    self._blocked = True
                    return self._give_up(lines, "blocked", begun=len(left) < len(piece))
            except OSError as error:
                reason = _REASONS.get(error.errno or 0, "error")
                return self._give_up(lines, reason, begun=len(left) < len(piece))
            else:
                left = left[written:]
        self._torn = self._blocked = False
        return None

    def _wait_until(self, deadline: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _give_up(self, lines: int, reason: str, *, begun: bool) -> None:
        self._torn = self._torn or begun
        self._drop(lines, reason)

    def _drop(self, lines: int, reason: str) -> None:
        self.dropped += lines
        if self.on_drop is not None:
            # Whatever counts the drops must not stop the service.
            with contextlib.suppress(Exception):
                self.on_drop(lines, reason)


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

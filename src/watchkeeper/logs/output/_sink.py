"""Where lines leave the process: whole, in order, batched by the turn of the event loop, never waited for."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from asyncio import _get_running_loop
from collections import deque
from contextvars import Context
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs.output._pieces import Pieces
from watchkeeper.logs.output._thread import Writer

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

PENDING_BYTES: Final = 8 * 1024 * 1024
_PATIENCE: Final = timedelta(seconds=5)
_MOMENT: Final = 0.25  # what a write takes at most that nobody has to wait for, in seconds
_LOOK: Final = timedelta(milliseconds=50)  # how often who waits for the reader looks whether it still should
_MOST_LATER: Final = 1024  # what has no line yet counts for no bytes
_BATCH_BYTES: Final = 64 * 1024  # what a pipe takes: of a backlog no more is joined at a time
DROP_REASONS: Final = ("blocked", "closed", "full", "overflow", "error")


class Sink:
    """Writes whole lines to a file descriptor, from any thread, and neither raises nor waits.

    Inside a running event loop lines are gathered and written at the end of the loop's turn; elsewhere at
    once. While the reader is behind, up to `PENDING_BYTES` of lines are kept and a thread writes them as room
    comes; a line beyond that is dropped. Several processes may share the descriptor: what is written at once
    is whole lines of at most PIPE_BUF bytes, which the kernel does not mix (POSIX, write), and a longer line
    is kept until there is room. The descriptor's flags are left alone: they belong to all who share it.

    Args:
        fd: Where to write; default standard output.
        on_drop: Called with a count and a reason (one of `DROP_REASONS`) for lines that could not be written.
        on_recover: Called with the number of lines dropped since the last call, once writing works again.
        patience: How long `flush` waits for a reader that is behind, at exit too; default 5 s.
    """

    def __init__(
        self,
        fd: int = 1,
        *,
        on_drop: Callable[[int, str], None] | None = None,
        on_recover: Callable[[int], None] | None = None,
        patience: timedelta = _PATIENCE,
    ) -> None:
        self.dropped: int = 0
        self.at_once = False  # for a loop that may end before its turn does
        self.render: Callable[[list[Any]], bytes] | None = None
        """Makes the lines of what was given to `write_later`."""
        self.on_drop = on_drop
        self.on_recover = on_recover
        # Python found no standard output when it started: by now the number may be somebody's socket.
        self._fd = -1 if fd == 1 and sys.__stdout__ is None else fd
        self._patience = patience.total_seconds()
        self._begin()
        _sinks.add(self)

    def _begin(self) -> None:
        self.later: deque[Any] = deque()
        """What has a line, but not in bytes yet."""
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0  # the writer thread's share included
        self._scheduled: AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._pieces = Pieces(self._fd, self._drop)
        self._writer = Writer()
        self._release = weakref.finalize(self, self._writer.end)
        self._release.atexit = False
        self._waiting: int | None = (
            None  # the thread that has the lock and waits for the reader; 0: ours will
        )
        self._handing_over: int | None = None  # the thread that is about to give the lock to ours
        self._giving_up = False  # whoever waits for the reader should stop
        self._unsaid = 0  # lines dropped since writing last worked

    @property
    def is_behind(self) -> bool:
        """Whether lines wait for the reader."""
        return self._lock.locked() or bool(self._pending)

    def write(self, lines: bytes) -> None:
        """Take one or more whole lines, newlines included; written now or at the end of the loop's turn."""
        if self.later:
            self.render_later()  # what was said before these
        self._take(lines)

    def write_later(self, said: Any) -> None:
        """Take what `render` makes a line of: now, or with all others at the end of the loop's turn.

        A request does not wait for its line then, and lines that are made together cost half each.
        """
        self.later.append(said)
        loop = None if self.at_once else _get_running_loop()
        if loop is None or len(self.later) >= _MOST_LATER:
            self.render_later()
        elif loop is not self._scheduled:
            self._schedule(loop)

    def render_later(self) -> None:
        """Make the lines of all that was given to `write_later`."""
        said: list[Any] = []
        try:
            while self.later:
                said.append(self.later.popleft())
        except IndexError:  # another thread was quicker
            pass
        if not said or self.render is None:
            return
        try:
            lines = self.render(said)
        except Exception:  # noqa: BLE001 - whatever a line is made of must not stop the service
            self._drop(len(said), "error")
            return
        except BaseException:  # a signal handler's: the lines are made later
            self.later.extendleft(reversed(said))
            raise
        if lines:
            self._take(lines)

    def _take(self, lines: bytes) -> None:
        if self._pending_bytes > PENDING_BYTES:
            self._drop(lines.count(b"\n"), "overflow")
            return
        self._pending_bytes += len(lines)  # no call between load and store: whole under the GIL
        self._pending.append(lines)
        loop = None if self.at_once else _get_running_loop()
        if loop is None:
            self._drain()
        elif loop is not self._scheduled:
            self._schedule(loop)

    def _schedule(self, loop: AbstractEventLoop) -> None:
        self._scheduled = loop
        # In a context of its own: it must not keep the request's alive, nor be entered by two loops.
        loop.call_soon(self._end_turn, context=Context())

    def flush(self) -> None:
        """Write what is gathered, and wait for the reader; what it has not taken in time is dropped.

        Waits up to the patience, or not at all when it has been used up since anything was written. Within a
        running event loop nothing is waited for, nor dropped.
        """
        if _get_running_loop() is None:
            self._flush(since=time.monotonic())
        else:
            self.render_later()
            self._drain()

    def _flush(self, since: float) -> None:
        self.render_later()
        deadline = since + (0 if self._pieces.failing else self._patience)
        me = threading.get_ident()  # in a callback or a signal handler it may be what would be waited for
        while self._drain() and self.is_behind and me not in (self._waiting, self._handing_over):
            left = deadline - time.monotonic()
            if left <= 0:
                self._give_up()
                return
            if self._lock.acquire(timeout=min(left, _MOMENT)):
                self._lock.release()
            elif self._waiting is None:
                return  # who writes looks again; it may be this very thread, below a signal handler
        if self._pending and self._lock.acquire(blocking=False):
            self._write_out_and_release(deadline)  # there is no thread to be had

    def _end_turn(self) -> None:
        try:
            self.render_later()
        finally:
            self._scheduled = None
            self._drain()

    def _drain(self) -> bool:
        """Write what is gathered, or see that it is written; return False if nobody will."""
        # Nobody waits for the lock: who holds it looks again after letting go, so no line is left behind.
        # That also makes it safe to log from a signal handler, from __del__ and from on_drop.
        while self._pending and self._lock.acquire(blocking=False):
            done = handed = False
            try:
                done = self._write_pending(aside=False)
                handed = not done and self._hand_over()
            finally:
                if not handed:
                    self._lock.release()
            if not done:
                return handed
        return True

    def _hand_over(self) -> bool:
        # The lock goes to the thread with the work, so nobody gets in between.
        self._waiting = 0
        self._handing_over = threading.get_ident()
        handed = False
        try:
            handed = self._writer.take_over(self._write_out_and_release)
        finally:
            self._handing_over = None
            if not handed:  # the next write or flush tries again
                self._waiting = None
        return handed

    def _write_out_and_release(self, deadline: float | None = None) -> None:
        self._waiting = threading.get_ident()
        try:
            while not self._write_pending(aside=True):
                if self._giving_up or (deadline is not None and time.monotonic() >= deadline):
                    self._drop_pending()
                else:
                    self._pieces.wait(_LOOK)
        finally:
            self._waiting = None
            self._giving_up = False
            self._lock.release()
        self._drain()

    def _give_up(self) -> None:
        self._giving_up = True
        if self._lock.acquire(timeout=_MOMENT):
            self._giving_up = False  # it was done just before
            self._lock.release()
        else:
            self._drop_pending()  # the thread hangs in a write that could not be made not to wait

    def _write_pending(self, *, aside: bool) -> bool:
        pending = self._pending
        while pending:
            count = len(pending)
            if count == 1:
                batch = pending.popleft()
            elif self._pending_bytes <= _BATCH_BYTES:
                batch = b"".join([pending.popleft() for _ in range(count)])
            else:
                batch = self._gather()
            left = b""  # should a signal handler raise in here, nobody knows what was written
            try:
                left = self._pieces.write(batch, aside=aside)
            finally:
                done = len(batch) - len(left)
                self._pending_bytes -= done
            if left:
                pending.appendleft(left)
                return False
            # Half empty, not just not full: or a reader that stays behind would get little else.
            if self._unsaid and not self._pieces.failing and self._pending_bytes < PENDING_BYTES // 2:
                self._recover()
        return True

    def _gather(self) -> bytes:
        lines: list[bytes] = []
        size = 0
        while self._pending and size < _BATCH_BYTES:
            lines.append(self._pending.popleft())
            size += len(lines[-1])
        return b"".join(lines)

    def _drop_pending(self) -> None:
        lost = b"".join([self._pending.popleft() for _ in range(len(self._pending))])
        size = len(lost)
        self._pending_bytes -= size
        if lost:
            self._pieces.lose(lost, "blocked")

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
    since = time.monotonic()  # several that share a stuck reader wait for it together
    for sink in list(_sinks):
        sink._flush(since)  # noqa: SLF001 - the class and this hook are one


def _begin_all() -> None:
    # The child of a fork would write the parent's lines again, and its lock may be held by a thread it lacks.
    for sink in list(_sinks):
        sink._release.detach()  # noqa: SLF001 - the class and this hook are one
        sink._begin()  # noqa: SLF001 - as above


atexit.register(_flush_all)
os.register_at_fork(after_in_child=_begin_all)

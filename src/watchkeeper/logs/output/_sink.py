"""Whole lines, written in order, one batch per turn of the event loop, without waiting for the reader."""

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

from watchkeeper.logs.output._chunks import ChunkWriter
from watchkeeper.logs.output._writer_thread import WriterThread

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

MAX_PENDING_BYTES: Final = 8 * 1024 * 1024
DROP_REASONS: Final = ("blocked", "closed", "full", "overflow", "error")

_WRITE_TIMEOUT_S: Final = 0.25  # upper bound for a write that need not wait for the reader
_RETRY_INTERVAL: Final = timedelta(milliseconds=50)
_MAX_DEFERRED: Final = 1024  # deferred items have no size yet, so they are limited by number
_MAX_BATCH_BYTES: Final = 64 * 1024  # a pipe's capacity: joining more of a backlog would be wasted


class Sink:
    """Writes whole lines to a file descriptor, from any thread; writing neither raises nor blocks.

    Within an event loop lines are written at the end of the loop's turn, elsewhere at once. While the reader
    is behind, up to `MAX_PENDING_BYTES` are kept and a thread writes them as there is room; further lines are
    dropped: `on_drop` gets a count and a reason, `on_recover` the number dropped since its last call.

    One lock guards writing, and a write never waits for it: the holder looks for more lines after releasing
    it. This also makes it safe to log from a signal handler, from `__del__` and from `on_drop`.
    """

    def __init__(
        self,
        fd: int = 1,
        *,
        on_drop: Callable[[int, str], None] | None = None,
        on_recover: Callable[[int], None] | None = None,
        flush_timeout: timedelta = timedelta(seconds=5),
    ) -> None:
        self.dropped: int = 0
        self.immediate = False
        """Write at once also within a loop, for a loop that may stop before its turn ends."""
        self.render_deferred: Callable[[list[Any]], bytes] | None = None
        """Renders the items given to `defer`."""
        self.on_drop = on_drop
        self.on_recover = on_recover
        # If Python started without a standard output, descriptor 1 may belong to another file by now.
        self._fd = -1 if fd == 1 and sys.__stdout__ is None else fd
        self._flush_timeout_s = flush_timeout.total_seconds()
        self._reset()
        _sinks.add(self)

    def _reset(self) -> None:
        self.deferred: deque[Any] = deque()
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0  # includes what the thread is writing
        self._scheduled: AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._chunks = ChunkWriter(self._fd, self._drop)
        self._thread = WriterThread()
        self._stop_thread = weakref.finalize(self, self._thread.stop)
        self._stop_thread.atexit = False
        self._waiting: int | None = None
        """Id of the thread that holds the lock and waits for the reader; 0 until the writer thread runs."""
        self._handing_over: int | None = None
        """Id of the thread that is passing the lock to the writer thread."""
        self._giving_up = False  # tells the thread that waits for the reader to drop what is left
        self._unreported_drops = 0

    def reset_after_fork(self) -> None:
        """Discard the parent's lines, which the parent writes, and its lock, which may never be released."""
        self._stop_thread.detach()
        self._reset()

    @property
    def is_behind(self) -> bool:
        """Whether lines wait for the reader."""
        return self._lock.locked() or bool(self._pending)

    def write(self, lines: bytes) -> None:
        """Write one or more whole lines, newlines included, now or at the end of the loop's turn."""
        if self.deferred:
            self.flush_deferred()  # they are older
        self._add(lines)

    def defer(self, item: Any) -> None:
        """Write the line of `item` at the end of the loop's turn, rendered with others at half the cost."""
        self.deferred.append(item)
        loop = None if self.immediate else _get_running_loop()
        if loop is None or len(self.deferred) >= _MAX_DEFERRED:
            self.flush_deferred()
        elif loop is not self._scheduled:
            self._schedule(loop)

    def flush_deferred(self) -> None:
        """Render all deferred items."""
        items: list[Any] = []
        try:
            while self.deferred:
                items.append(self.deferred.popleft())
        except IndexError:  # another thread took the last one
            pass
        if not items or self.render_deferred is None:
            return
        try:
            lines = self.render_deferred(items)
        except Exception:  # noqa: BLE001 - no item may stop the service
            self._drop(len(items), "error")
            return
        except BaseException:  # raised by a signal handler: render them later
            self.deferred.extendleft(reversed(items))
            raise
        if lines:
            self._add(lines)

    def _add(self, lines: bytes) -> None:
        if self._pending_bytes > MAX_PENDING_BYTES:
            self._drop(lines.count(b"\n"), "overflow")
            return
        self._pending_bytes += len(lines)  # no call between load and store: atomic under the GIL
        self._pending.append(lines)
        loop = None if self.immediate else _get_running_loop()
        if loop is None:
            self._drain()
        elif loop is not self._scheduled:
            self._schedule(loop)

    def _schedule(self, loop: AbstractEventLoop) -> None:
        self._scheduled = loop
        # An empty context: the request's would be kept alive, and two loops cannot enter the same one.
        loop.call_soon(self._end_turn, context=Context())

    def _end_turn(self) -> None:
        try:
            self.flush_deferred()
        finally:
            self._scheduled = None
            self._drain()

    def flush(self, *, since: float | None = None) -> None:
        """Write everything, wait for the reader, and drop what it has not taken within the time-out.

        The time-out starts at `since` (default now); it is zero if an earlier flush used it up and nothing
        was written since. Within a running event loop nothing is waited for or dropped.
        """
        self.flush_deferred()
        if _get_running_loop() is not None:
            self._drain()
            return
        timeout = 0 if self._chunks.failing else self._flush_timeout_s
        deadline = (time.monotonic() if since is None else since) + timeout
        me = threading.get_ident()  # within a callback or a signal handler this thread would wait for itself
        while self._drain() and self.is_behind and me not in (self._waiting, self._handing_over):
            left = deadline - time.monotonic()
            if left <= 0:
                self._give_up()
                return
            if self._lock.acquire(timeout=min(left, _WRITE_TIMEOUT_S)):
                self._lock.release()
            elif self._waiting is None:
                return  # the holder looks for more lines; it may be this thread, in a signal handler
        if self._pending and self._lock.acquire(blocking=False):
            self._write_and_release(deadline)  # no thread can be started

    def _drain(self) -> bool:
        """Write what is pending or hand it to the thread; return False if no thread can be started."""
        while self._pending and self._lock.acquire(blocking=False):
            done = handed_over = False
            try:
                done = self._write_pending(in_thread=False)
                handed_over = not done and self._hand_over()
            finally:
                if not handed_over:
                    self._lock.release()
            if not done:
                return handed_over
        return True

    def _hand_over(self) -> bool:
        # The lock goes to the thread with the job, so no other thread writes in between.
        self._waiting = 0
        self._handing_over = threading.get_ident()
        handed_over = False
        try:
            handed_over = self._thread.run(self._write_and_release)
        finally:
            self._handing_over = None
            if not handed_over:  # the next write or flush tries again
                self._waiting = None
        return handed_over

    def _write_and_release(self, deadline: float | None = None) -> None:
        self._waiting = threading.get_ident()
        try:
            while not self._write_pending(in_thread=True):
                if self._giving_up or (deadline is not None and time.monotonic() >= deadline):
                    self._drop_pending()
                else:
                    self._chunks.wait(_RETRY_INTERVAL)
        finally:
            self._waiting = None
            self._giving_up = False
            self._lock.release()
        self._drain()

    def _give_up(self) -> None:
        self._giving_up = True
        if self._lock.acquire(timeout=_WRITE_TIMEOUT_S):
            self._giving_up = False  # everything had just been written
            self._lock.release()
        else:
            self._drop_pending()  # the thread hangs in a write that could only be made to block

    def _write_pending(self, *, in_thread: bool) -> bool:
        pending = self._pending
        while pending:
            count = len(pending)
            if count == 1:
                batch = pending.popleft()
            elif self._pending_bytes <= _MAX_BATCH_BYTES:
                batch = b"".join([pending.popleft() for _ in range(count)])
            else:
                batch = self._take_batch()
            rest = b""  # if a signal handler raises in here, it is unknown what was written
            try:
                rest = self._chunks.write(batch, in_thread=in_thread)
            finally:
                self._pending_bytes -= len(batch) - len(rest)
            if rest:
                pending.appendleft(rest)
                return False
            if self._unreported_drops and self._has_recovered():
                self._report_drops()
        return True

    def _take_batch(self) -> bytes:
        lines: list[bytes] = []
        size = 0
        while self._pending and size < _MAX_BATCH_BYTES:
            lines.append(self._pending.popleft())
            size += len(lines[-1])
        return b"".join(lines)

    def _drop_pending(self) -> None:
        lines = b"".join([self._pending.popleft() for _ in range(len(self._pending))])
        size = len(lines)
        self._pending_bytes -= size
        if lines:
            self._chunks.drop(lines, "blocked")

    def _drop(self, lines: int, reason: str) -> None:
        self.dropped += lines
        self._unreported_drops += lines
        if self.on_drop is not None:
            with contextlib.suppress(Exception):  # a callback must not stop the service
                self.on_drop(lines, reason)

    def _has_recovered(self) -> bool:
        # Half of the limit: just below it, a slow reader would get little but reports of drops.
        return not self._chunks.failing and self._pending_bytes < MAX_PENDING_BYTES // 2

    def _report_drops(self) -> None:
        lines, self._unreported_drops = self._unreported_drops, 0
        if self.on_recover is not None:
            with contextlib.suppress(Exception):
                self.on_recover(lines)


_sinks: weakref.WeakSet[Sink] = weakref.WeakSet()


def _flush_all() -> None:
    since = time.monotonic()  # sinks that share a stuck reader share the time-out
    for sink in list(_sinks):
        sink.flush(since=since)


def _reset_all() -> None:
    for sink in list(_sinks):
        sink.reset_after_fork()


atexit.register(_flush_all)
os.register_at_fork(after_in_child=_reset_all)

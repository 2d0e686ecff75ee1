"""The thread that writes what the event loop must not wait for."""

from __future__ import annotations

import contextlib
import threading
from contextvars import Context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class WriterThread:
    """A daemon thread, started on first use, that runs one job at a time.

    A plain lock wakes it: with a Condition, a signal handler that logs could wait for what it interrupted.
    """

    def __init__(self) -> None:
        self._wake_up = threading.Lock()
        self._wake_up.acquire()
        self._job: Callable[[], None] | None = None
        self._started = False

    def run(self, job: Callable[[], None]) -> bool:
        """Run `job` in the thread, which must be idle; return False if no thread can be started."""
        if not self._started:
            thread = threading.Thread(target=self._loop, name="watchkeeper-lines", daemon=True)
            try:
                Context().run(thread.start)  # it outlives the request in which it is started
            except RuntimeError:  # too many threads, or the interpreter is shutting down
                return False
            self._started = True
        self._job = job
        self._wake_up.release()
        return True

    def stop(self) -> None:
        """Stop the thread; it must be idle."""
        self._job = None
        self._wake_up.release()

    def _loop(self) -> None:
        while True:
            self._wake_up.acquire()
            # No reference while waiting: the job keeps its owner alive.
            job, self._job = self._job, None
            if job is None:
                return
            with contextlib.suppress(Exception):
                job()
            del job

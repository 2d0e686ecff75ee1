"""A thread for what the event loop must not wait for."""

from __future__ import annotations

import contextlib
import threading
from contextvars import Context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Writer:
    """A daemon thread, started when it is first needed, that does one piece of work after the other.

    Only a plain lock lies between: with a condition or an event, a signal handler that logs could wait for
    the very code that it interrupted.
    """

    def __init__(self) -> None:
        self._bell = threading.Lock()
        self._bell.acquire()
        self._work: Callable[[], None] | None = None
        self._started = False

    def take_over(self, work: Callable[[], None]) -> bool:
        """Have `work` done in the thread; the caller sees to it that the one before is done.

        Returns:
            False when there can be no thread: too many of them, or the interpreter is ending.
        """
        if not self._started:
            thread = threading.Thread(target=self._run, name="watchkeeper-lines", daemon=True)
            try:
                Context().run(thread.start)  # it outlives the request that it is started in
            except RuntimeError:
                return False
            self._started = True
        self._work = work
        self._bell.release()
        return True

    def end(self) -> None:
        """End the thread, once it has nothing to do any more."""
        self._work = None
        self._bell.release()

    def _run(self) -> None:
        while True:
            self._bell.acquire()
            # Held by no name of ours while waiting: the work keeps its owner alive.
            work, self._work = self._work, None
            if work is None:
                return
            with contextlib.suppress(Exception):
                work()
            del work

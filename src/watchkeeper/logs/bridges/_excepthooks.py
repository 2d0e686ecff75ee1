"""Exceptions that nobody catches become a line instead of a traceback over many."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from watchkeeper.logs._logging import Logging


class Hooks:
    """The interpreter's three last resorts: main thread, other threads, and where nothing can be raised.

    What asyncio reports (a task's exception that was never retrieved) comes through its logger.

    Args:
        owner: Where the lines go.
    """

    def __init__(self, owner: Logging) -> None:
        self._owner = owner
        self._restore: Callable[[], None] | None = None
        self._interrupted = sys.excepthook

    def begin(self) -> None:
        """Take the hooks over."""
        if self._restore is not None:
            return
        ours = (self._uncaught, self._uncaught_in_thread, self._unraisable)
        before = (sys.excepthook, threading.excepthook, sys.unraisablehook)
        sys.excepthook, threading.excepthook, sys.unraisablehook = ours
        self._interrupted = before[0]

        def restore() -> None:
            # A hook that somebody put on top of ours since then stays.
            if sys.excepthook == ours[0]:
                sys.excepthook = before[0]
            if threading.excepthook == ours[1]:
                threading.excepthook = before[1]
            if sys.unraisablehook == ours[2]:
                sys.unraisablehook = before[2]

        self._restore = restore

    def end(self) -> None:
        """Put back what was there."""
        if self._restore is not None:
            self._restore()
            self._restore = None

    def _uncaught(
        self, kind: type[BaseException], exc: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            self._interrupted(kind, exc, traceback)
            return
        self._owner.exception(exc, message="Uncaught exception", level="fatal")
        self._owner.flush()

    def _uncaught_in_thread(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or issubclass(args.exc_type, SystemExit):
            return
        name = args.thread.name if args.thread is not None else None
        self._owner.exception(args.exc_value, message="Uncaught exception in a thread", thread=name)

    def _unraisable(self, args: Any) -> None:
        message = args.err_msg or "Exception ignored"
        if args.exc_value is None:
            self._owner.event("error", msg=message, object=args.object)
        else:
            self._owner.exception(args.exc_value, message=message, object=args.object)

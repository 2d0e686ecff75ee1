"""Uncaught exceptions as one line each, instead of a multi-line traceback."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from watchkeeper.logs._event_log import EventLog


class ExceptHooks:
    """The interpreter's hooks for the main thread, for other threads, and for what cannot be raised."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._restore: Callable[[], None] | None = None
        self._previous = sys.excepthook

    def install(self) -> None:
        """Replace the hooks."""
        if self._restore is not None:
            return
        ours = (self._uncaught, self._uncaught_in_thread, self._unraisable)
        before = (sys.excepthook, threading.excepthook, sys.unraisablehook)
        sys.excepthook, threading.excepthook, sys.unraisablehook = ours
        self._previous = before[0]

        def restore() -> None:
            # A hook that has since replaced ours is kept.
            if sys.excepthook == ours[0]:
                sys.excepthook = before[0]
            if threading.excepthook == ours[1]:
                threading.excepthook = before[1]
            if sys.unraisablehook == ours[2]:
                sys.unraisablehook = before[2]

        self._restore = restore

    def uninstall(self) -> None:
        """Restore the previous hooks."""
        if self._restore is not None:
            self._restore()
            self._restore = None

    def _uncaught(
        self, kind: type[BaseException], exc: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            self._previous(kind, exc, traceback)
            return
        self._log.exception(exc, message="Uncaught exception", level="fatal")
        self._log.flush()

    def _uncaught_in_thread(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or issubclass(args.exc_type, SystemExit):
            return
        name = args.thread.name if args.thread is not None else None
        self._log.exception(args.exc_value, message="Uncaught exception in a thread", thread=name)

    def _unraisable(self, args: Any) -> None:
        message = args.err_msg or "Exception ignored"
        if args.exc_value is None:
            self._log.event("error", msg=message, object=args.object)
        else:
            self._log.exception(args.exc_value, message=message, object=args.object)

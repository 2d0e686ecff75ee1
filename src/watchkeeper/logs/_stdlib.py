"""The standard library's logging comes out in the same lines: every library's, and the server's own."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs._errors import claim_exception
from watchkeeper.logs._levels import LEVELS, label_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SERVERS: Final = (
    "uvicorn",
    "uvicorn.error",
    "uvicorn.asgi",
    "_granian",
    "granian",
    "hypercorn",
    "hypercorn.error",
    "gunicorn",
    "gunicorn.error",
    "litestar",
)
_ACCESS: Final = ("uvicorn.access", "granian.access", "hypercorn.access", "gunicorn.access")
# Who reports an exception only because nobody caught it: no second line for one that has been logged.
_REPORTERS: Final = frozenset((*_SERVERS, "asyncio"))
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


class Handler(logging.Handler):
    """Hands each record to `write` as level and fields.

    Args:
        write: Takes a level's label and the fields.
    """

    def __init__(self, write: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__()
        self._write = write

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Make no lock: the sink needs none, and one would dead-lock when a record's own repr logs."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record` as one line."""
        exc = record.exc_info[1] if record.exc_info else None
        if exc is not None and record.levelno >= logging.ERROR:
            first = claim_exception(exc)
            if not first and record.name in _REPORTERS:
                return
        fields: dict[str, Any] = {"msg": _message(record), "logger": record.name}
        fields.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if exc is not None:
            fields["error"] = exc
        if record.stack_info:
            fields["stack"] = record.stack_info
        self._write(label_of(record.levelno), fields)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - the arguments are the caller's, and the line must come out
        return f"{record.msg!s} {record.args!r}"


class Takeover:
    """Puts one handler where the console handlers of the root, of the servers and of libraries were.

    Handlers that write elsewhere (a file, a test's capture) stay. The servers' access logs are silenced: the
    request line is theirs.

    Args:
        handler: What is to write every record.
    """

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler
        self._before: dict[logging.Logger, tuple[list[logging.Handler], bool]] = {}
        self._root_level = logging.WARNING
        self._captured_warnings = False

    def begin(self, level: str) -> None:
        """Take over; called again, also what was configured since."""
        root = logging.getLogger()
        if not self._before:
            self._root_level = root.level
            # logging keeps what it replaced in this name; it is None as long as warnings go their own way.
            self._captured_warnings = getattr(logging, "_warnings_showwarning", None) is None
            if self._captured_warnings:
                logging.captureWarnings(True)
        for name in (*_SERVERS, *_ACCESS):
            logging.getLogger(name)
        for logger in (root, *_existing_loggers()):
            self._take(logger)
        if self._handler not in root.handlers:
            root.addHandler(self._handler)
        self.set_level(level)

    def _take(self, logger: logging.Logger) -> None:
        known = logger.name in _SERVERS or logger.name in _ACCESS
        console = [handler for handler in logger.handlers if known or _is_console(handler)]
        if logger not in self._before and (known or console or logger is logging.getLogger()):
            self._before[logger] = (list(logger.handlers), logger.propagate)
        for handler in console:
            if handler is not self._handler:
                logger.removeHandler(handler)
        if logger.name in _ACCESS:
            logger.propagate = False
            logger.addHandler(logging.NullHandler())
        elif known or console:
            logger.propagate = True

    def set_level(self, level: str) -> None:
        """Let through what is at least of this level."""
        self._handler.setLevel(LEVELS[level])
        logging.getLogger().setLevel(LEVELS[level])

    def end(self) -> None:
        """Put everything back."""
        for logger, (handlers, propagate) in self._before.items():
            logger.handlers[:] = handlers
            logger.propagate = propagate
        self._before.clear()
        root = logging.getLogger()
        root.removeHandler(self._handler)
        root.setLevel(self._root_level)
        if self._captured_warnings:
            logging.captureWarnings(False)


def _existing_loggers() -> Iterator[logging.Logger]:
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


def _is_console(handler: logging.Handler) -> bool:
    if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
        return handler.stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    listener = getattr(handler, "listener", None)  # a QueueHandler's (Litestar's default)
    return any(map(_is_console, getattr(listener, "handlers", ())))

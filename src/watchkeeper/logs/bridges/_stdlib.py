"""The standard library's logging comes out in the same lines: every library's, and the server's own."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs._errors import claim_exception, was_just_claimed
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
_TRACEBACK: Final = "Traceback (most recent call last)"
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


class _NoLock:
    """What logging from 3.13 on insists on having (there None is not enough)."""

    def acquire(self) -> None:
        pass

    release = acquire

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class Handler(logging.Handler):
    """Hands each record to `write` as level and fields.

    Args:
        write: Takes a level's label and the fields.
    """

    def __init__(self, write: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__()
        self.in_use = True
        self._write = write

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Make no lock: the sink needs none, and one could dead-lock (a signal handler that logs, a fork)."""
        self.lock: Any = _NoLock()

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record` as one line."""
        try:
            self._emit(record)
        except Exception:  # noqa: BLE001 - what logging asks of a handler; the caller must never notice
            self.handleError(record)

    def _emit(self, record: logging.LogRecord) -> None:
        exc = record.exc_info[1] if record.exc_info else None
        name = str(record.name)
        if exc is not None and record.levelno >= logging.ERROR:
            first = claim_exception(exc)
            if not first and name in _REPORTERS:
                return
        message = _message(record)
        if name.startswith("_granian") and _TRACEBACK in message and was_just_claimed(message):
            return
        fields: dict[str, Any] = {"msg": message, "logger": name}
        fields.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if exc is not None:
            fields["error"] = exc
        stack = record.stack_info or (record.exc_text if exc is None else None)
        if stack:
            fields["stack"] = stack
        self._write(label_of(record.levelno), fields)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - the arguments are the caller's, and the line must come out
        return f"{record.msg!s} {record.args!r}"


class Takeover:
    """Puts one handler where the console handlers of the root, of the servers and of libraries were.

    Handlers that write elsewhere (a file, a test's capture) stay. The servers' access logs are silenced: the
    request line takes their place.

    Args:
        handler: What is to write every record.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._removed: list[tuple[logging.Logger, logging.Handler]] = []
        self._flags: dict[logging.Logger, tuple[bool, bool]] = {}
        self._root_level: int | None = None
        self._captured_warnings = False

    def begin(self, level: str) -> None:
        """Take over; called again, also what was configured since."""
        root = logging.getLogger()
        self._handler.in_use = True
        if self._root_level is None:
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
        access = logger.name in _ACCESS
        known = access or logger.name in _SERVERS
        consoles = [handler for handler in logger.handlers if self._is_ours_to_take(handler, known=known)]
        for handler in consoles:
            self._removed.append((logger, handler))
            logger.removeHandler(handler)
        if known or consoles:
            self._flags.setdefault(logger, (logger.propagate, logger.disabled))
            logger.propagate = not access
        if access:
            # Without handlers uvicorn does not even put a record together.
            logger.disabled = not logger.handlers

    def _is_ours_to_take(self, handler: logging.Handler, *, known: bool) -> bool:
        if handler is self._handler:
            return False
        if isinstance(handler, Handler):
            return True  # another owner's: whoever installs last writes the records, once
        return _is_console(handler) or (known and not isinstance(handler, logging.FileHandler))

    def set_level(self, level: str) -> None:
        """Let through what is at least of this level."""
        self._handler.setLevel(LEVELS[level])
        logging.getLogger().setLevel(LEVELS[level])

    def end(self) -> None:
        """Put everything back, and leave what was added since."""
        self._handler.in_use = False
        for logger, handler in self._removed:
            if not isinstance(handler, Handler) or handler.in_use:
                logger.addHandler(handler)
        for logger, (propagate, disabled) in self._flags.items():
            logger.propagate, logger.disabled = propagate, disabled
        self._removed.clear()
        self._flags.clear()
        root = logging.getLogger()
        root.removeHandler(self._handler)
        if self._root_level is not None:
            root.setLevel(self._root_level)
            self._root_level = None
        if self._captured_warnings:
            logging.captureWarnings(False)
            self._captured_warnings = False


def _existing_loggers() -> Iterator[logging.Logger]:
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


def _is_console(handler: logging.Handler) -> bool:
    if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
        return handler.stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    listener = getattr(handler, "listener", None)  # a QueueHandler's (Litestar's default)
    return any(map(_is_console, getattr(listener, "handlers", ())))

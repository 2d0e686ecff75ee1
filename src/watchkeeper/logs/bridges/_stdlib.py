"""Records of the standard library's logging as lines: every library's, and the server's own."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs._exceptions import claim_exception, was_just_claimed
from watchkeeper.logs._levels import LEVELS, level_of

if TYPE_CHECKING:
    from collections.abc import Callable

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
# They log an exception only because it was not caught: if it has been logged already, that is left out.
_LAST_RESORT: Final = frozenset((*_SERVERS, "asyncio"))
_TRACEBACK: Final = "Traceback (most recent call last)"
_RECORD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


class _NoLock:
    """Stands in for a handler's lock: since Python 3.13 logging requires one."""

    def acquire(self) -> None:
        pass

    release = acquire

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class LineHandler(logging.Handler):
    """Passes each record to `write` as level and fields."""

    def __init__(self, write: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__()
        self.installed = True
        self._write = write

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Create no lock: the sink needs none, and one could deadlock in a signal handler or after a fork."""
        self.lock: Any = _NoLock()

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record` as one line."""
        try:
            self._emit(record)
        except Exception:  # noqa: BLE001 - a handler must not raise into the code that logs
            self.handleError(record)

    def _emit(self, record: logging.LogRecord) -> None:
        exc = record.exc_info[1] if record.exc_info else None
        name = str(record.name)
        if exc is not None and record.levelno >= logging.ERROR:
            claimed = claim_exception(exc)
            if not claimed and name in _LAST_RESORT:
                return
        message = _message(record)
        if name.startswith("_granian") and _TRACEBACK in message and was_just_claimed(message):
            return
        fields: dict[str, Any] = {"msg": message, "logger": name}
        fields.update({key: value for key, value in vars(record).items() if key not in _RECORD_ATTRIBUTES})
        if exc is not None:
            fields["error"] = exc
        stack = record.stack_info or (record.exc_text if exc is None else None)
        if stack:
            fields["stack"] = stack
        self._write(level_of(record.levelno), fields)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - wrong arguments must not lose the line
        return f"{record.msg!s} {record.args!r}"


class StdlibBridge:
    """Replaces the console handlers of the root, of servers and of libraries with one `LineHandler`.

    Handlers that write elsewhere are kept. Access logs are silenced: requests have request lines.
    """

    def __init__(self, handler: LineHandler) -> None:
        self._handler = handler
        self._removed: list[tuple[logging.Logger, logging.Handler]] = []
        self._flags: dict[logging.Logger, tuple[bool, bool]] = {}
        self._root_level: int | None = None
        self._captured_warnings = False

    def install(self, level: str) -> None:
        """Replace the handlers; call it again to replace those configured since."""
        root = logging.getLogger()
        self._handler.installed = True
        if self._root_level is None:
            self._root_level = root.level
            # logging keeps the function that it replaced here: None means that no one captures warnings yet.
            self._captured_warnings = getattr(logging, "_warnings_showwarning", None) is None
            if self._captured_warnings:
                logging.captureWarnings(True)
        for name in (*_SERVERS, *_ACCESS):
            logging.getLogger(name)
        for logger in (root, *list(root.manager.loggerDict.values())):
            if isinstance(logger, logging.Logger):
                self._replace_consoles(logger)
        if self._handler not in root.handlers:
            root.addHandler(self._handler)
        self.set_level(level)

    def _replace_consoles(self, logger: logging.Logger) -> None:
        access = logger.name in _ACCESS
        known = access or logger.name in _SERVERS
        consoles = [handler for handler in logger.handlers if self._is_replaced(handler, known=known)]
        for handler in consoles:
            self._removed.append((logger, handler))
            logger.removeHandler(handler)
        if known or consoles:
            self._flags.setdefault(logger, (logger.propagate, logger.disabled))
            logger.propagate = not access
        if access:
            # If disabled, uvicorn does not even build a record.
            logger.disabled = not logger.handlers

    def _is_replaced(self, handler: logging.Handler, *, known: bool) -> bool:
        if handler is self._handler:
            return False
        if isinstance(handler, LineHandler):
            return True  # another Logging's: the last one installed writes the records
        return _is_console(handler) or (known and not isinstance(handler, logging.FileHandler))

    def set_level(self, level: str) -> None:
        """Drop records below this level."""
        self._handler.setLevel(LEVELS[level])
        logging.getLogger().setLevel(LEVELS[level])

    def uninstall(self) -> None:
        """Restore everything, and keep what was added since."""
        self._handler.installed = False
        for logger, handler in self._removed:
            if not isinstance(handler, LineHandler) or handler.installed:
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


def _is_console(handler: logging.Handler) -> bool:
    if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
        return handler.stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    listener = getattr(handler, "listener", None)  # of a QueueHandler, Litestar's default
    return any(map(_is_console, getattr(listener, "handlers", ())))

"""structlog as the API for the service's own lines."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

import structlog

from watchkeeper.logs._exceptions import claim_exception
from watchkeeper.logs._levels import ALIASES, LEVELS, level_of

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from watchkeeper.logs._event_log import EventLog


class _LineLogger:
    """The logger at the end of structlog's chain: it writes rendered lines."""

    __slots__ = ("_write", "name")

    def __init__(self, write: Callable[[bytes], None], name: str | None = None) -> None:
        self._write = write
        self.name = name

    def info(self, line: bytes) -> None:
        self._write(line)

    trace = debug = warn = error = fatal = info


def make_logger(log: EventLog) -> Any:
    """Return a logger that writes to `log`, however structlog is configured."""
    return structlog.wrap_logger(
        _LineLogger(log.sink.write),
        processors=[structlog.contextvars.merge_contextvars, _RenderProcessor(log)],
        wrapper_class=type("Logger", (_BoundLogger,), {"_log": log}),
        context_class=dict,
        cache_logger_on_first_use=True,
    )


def configure(log: EventLog) -> Callable[[], None]:
    """Make structlog write to `log`; return a function that restores its configuration."""
    logger_class = type("Logger", (_BoundLogger,), {"_log": log})
    was_configured = structlog.is_configured()
    before = dict(structlog.get_config())
    write = log.sink.write
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _RenderProcessor(log)],
        wrapper_class=logger_class,
        context_class=dict,
        logger_factory=lambda *names: _LineLogger(write, *names[:1]),
        # Loggers look up the configuration each time, so uninstall() and a second keeper affect them too.
        cache_logger_on_first_use=False,
    )

    def restore() -> None:
        if structlog.get_config()["wrapper_class"] is not logger_class:
            return  # configured by someone else since
        structlog.reset_defaults()
        if was_configured:
            structlog.configure(**before)

    return restore


class _RenderProcessor:
    """structlog's last processor: renders an event as a line."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> bytes:
        level = ALIASES.get(method, "info")
        fields: dict[str, Any] = {"msg": event.pop("event", "")}
        name = getattr(logger, "name", None)
        if name:
            fields["logger"] = name
        exc = _exception_of(event.pop("exc_info", None))
        stack = event.pop("stack_info", None)
        fields.update((key if key != "msg" else "msg_", value) for key, value in event.items())
        if exc is not None:
            if LEVELS[level] >= LEVELS["error"]:
                claim_exception(exc)
            fields["error"] = exc
        if stack:
            fields["stack"] = _stack_here() if stack is True else stack
        line = self._log.render(level, fields)
        if isinstance(logger, _LineLogger):
            return line
        # A wrapped logger of the standard library would wrap the rendered line in another line.
        self._log.sink.write(line)
        raise structlog.DropEvent


def _exception_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if len(exc_info) == 3 else None
    return sys.exc_info()[1] if exc_info else None


def _stack_here() -> str:
    return "".join(traceback.format_stack()[:-4])


class _BoundLogger(structlog.BoundLoggerBase):
    """structlog's methods and `trace`, with a level that may change while the service runs."""

    _log: EventLog

    def log(self, level: int | str, event: str, *args: Any, **fields: Any) -> None:
        name = level_of(level) if isinstance(level, int) else ALIASES.get(level.lower(), "info")
        self._emit(name, event, args, fields)

    def exception(self, event: str, *args: Any, **fields: Any) -> None:
        fields.setdefault("exc_info", True)
        self._emit("error", event, args, fields)

    def is_enabled_for(self, level: int) -> bool:
        return level >= self._log.threshold

    isEnabledFor = is_enabled_for  # noqa: N815 - the standard library's name

    def get_effective_level(self) -> int:
        return self._log.threshold

    getEffectiveLevel = get_effective_level  # noqa: N815 - the standard library's name

    def _emit(self, level: str, event: str, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        if LEVELS[level] >= self._log.threshold:
            self._proxy_to_logger(level, _interpolate(event, args), **fields)


def _interpolate(event: str, args: tuple[Any, ...]) -> str:
    if not args:
        return event
    try:
        return event % (args[0] if len(args) == 1 and isinstance(args[0], dict) and args[0] else args)
    except Exception:  # noqa: BLE001 - wrong arguments must not lose the line
        return f"{event} {args!r}"


def _method_of(level: str) -> Callable[..., None]:
    def method(self: _BoundLogger, event: str = "", *args: Any, **fields: Any) -> None:
        self._emit(level, event, args, fields)

    return method


def _async_method_of(name: str) -> Callable[..., Any]:
    async def method(self: _BoundLogger, *args: Any, **fields: Any) -> None:
        getattr(self, name)(*args, **fields)

    return method


_METHODS: Final = {name: level for name, level in ALIASES.items() if name not in ("notset", "exception")}
for _name, _level in {**_METHODS, "msg": "info"}.items():
    setattr(_BoundLogger, _name, _method_of(_level))
for _name in (*_METHODS, "msg", "exception", "log"):
    setattr(_BoundLogger, f"a{_name}", _async_method_of(_name))

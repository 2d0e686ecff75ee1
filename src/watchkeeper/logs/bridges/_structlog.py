"""structlog as the API for the service's own lines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

from watchkeeper.logs._errors import claim_exception
from watchkeeper.logs._levels import ALIASES, LEVELS, label_of

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from watchkeeper.logs._logging import Logging


class _Output:
    """What structlog calls a logger: takes the rendered line; the name is that of `get_logger(name)`."""

    __slots__ = ("_write", "name")

    def __init__(self, write: Callable[[bytes], None], name: str | None = None) -> None:
        self._write = write
        self.name = name

    def info(self, line: bytes) -> None:
        self._write(line)

    trace = debug = warn = error = fatal = info


def make_logger(owner: Logging) -> Any:
    """Return a logger that writes through `owner`, whatever structlog is configured for."""
    return structlog.wrap_logger(
        _Output(owner.sink.write),
        processors=[structlog.contextvars.merge_contextvars, _Render(owner)],
        wrapper_class=type("Logger", (_Logger,), {"_owner": owner}),
        context_class=dict,
        cache_logger_on_first_use=True,
    )


def configure(owner: Logging) -> Callable[[], None]:
    """Make structlog write through `owner`; return what puts its configuration back."""
    logger_class = type("Logger", (_Logger,), {"_owner": owner})
    was_configured = structlog.is_configured()
    before = dict(structlog.get_config())
    write = owner.sink.write
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _Render(owner)],
        wrapper_class=logger_class,
        context_class=dict,
        logger_factory=lambda *names: _Output(write, *names[:1]),
        # Loggers look the configuration up each time: uninstall() and a second keeper reach them too.
        cache_logger_on_first_use=False,
    )

    def restore() -> None:
        if structlog.get_config()["wrapper_class"] is not logger_class:
            return  # somebody has configured it since
        structlog.reset_defaults()
        if was_configured:
            structlog.configure(**before)

    return restore


class _Render:
    """The last processor: from an event to its line."""

    def __init__(self, owner: Logging) -> None:
        self._owner = owner

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
        line = self._owner.render(level, fields)
        if isinstance(logger, _Output):
            return line
        # A logger of the standard library, wrapped in structlog: through it the line would be in a line.
        self._owner.sink.write(line)
        raise structlog.DropEvent


def _exception_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if len(exc_info) == 3 else None
    return sys.exc_info()[1] if exc_info else None


def _stack_here() -> str:
    import traceback  # noqa: PLC0415 - only on request

    return "".join(traceback.format_stack()[:-4])


class _Logger(structlog.BoundLoggerBase):
    """structlog's methods, with trace, and with a level that may change while the service runs."""

    _owner: Logging

    def log(self, level: int | str, event: str, *args: Any, **fields: Any) -> None:
        name = label_of(level) if isinstance(level, int) else ALIASES.get(level.lower(), "info")
        self._emit(name, event, args, fields)

    def exception(self, event: str, *args: Any, **fields: Any) -> None:
        fields.setdefault("exc_info", True)
        self._emit("error", event, args, fields)

    def is_enabled_for(self, level: int) -> bool:
        return level >= self._owner.threshold

    isEnabledFor = is_enabled_for  # noqa: N815 - the standard library's name

    def get_effective_level(self) -> int:
        return self._owner.threshold

    getEffectiveLevel = get_effective_level  # noqa: N815 - the standard library's name

    def _emit(self, level: str, event: str, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        if LEVELS[level] >= self._owner.threshold:
            self._proxy_to_logger(level, _interpolate(event, args), **fields)


def _interpolate(event: str, args: tuple[Any, ...]) -> str:
    if not args:
        return event
    try:
        return event % (args[0] if len(args) == 1 and isinstance(args[0], dict) and args[0] else args)
    except Exception:  # noqa: BLE001 - a wrong placeholder must not cost the line
        return f"{event} {args!r}"


def _method_of(level: str) -> Callable[..., None]:
    def method(self: _Logger, event: str = "", *args: Any, **fields: Any) -> None:
        self._emit(level, event, args, fields)

    return method


def _async_method_of(name: str) -> Callable[..., Any]:
    async def method(self: _Logger, *args: Any, **fields: Any) -> None:
        getattr(self, name)(*args, **fields)

    return method


_METHODS: Final = {name: level for name, level in ALIASES.items() if name not in ("notset", "exception")}
for _name, _level in {**_METHODS, "msg": "info"}.items():
    setattr(_Logger, _name, _method_of(_level))
for _name in (*_METHODS, "msg", "exception", "log"):
    setattr(_Logger, f"a{_name}", _async_method_of(_name))

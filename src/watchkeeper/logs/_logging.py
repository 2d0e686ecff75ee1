"""The one owner of how lines come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs._errors import claim_exception
from watchkeeper.logs._levels import ALIASES, LEVELS, parse_level
from watchkeeper.logs._render import Renderer
from watchkeeper.logs._request_line import RequestLineRenderer
from watchkeeper.logs.bridges._excepthooks import Hooks
from watchkeeper.logs.bridges._stdlib import Handler, Takeover
from watchkeeper.logs.output._sink import Sink
from watchkeeper.logs.redaction._redactor import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.logs._request_line import RequestLine

_INFO: Final = LEVELS["info"]


class Logging:
    """Writes one JSON object a line: the service's own lines, every library's, and the requests'.

    Args:
        service: The `service` of each line.
        env: The `env` of each line.
        level: The lowest level that is written, as `parse_level` takes it; default info.
        sink: Where lines go; default standard output.
        redactor: What masks secrets; default one that knows no registered secret.
    """

    def __init__(
        self,
        *,
        service: str,
        env: str,
        level: str = "info",
        sink: Sink | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self.level: str = parse_level(level)
        self.threshold: int = LEVELS[self.level]
        self.sink: Final = Sink() if sink is None else sink
        self.redactor: Final = Redactor() if redactor is None else redactor
        self._renderer = Renderer(_encodable(service), _encodable(env), self.redactor)
        self._request_lines = RequestLineRenderer(self._renderer, self.redactor)
        if isinstance(self.sink, Sink) and self.sink.on_recover is None:
            self.sink.on_recover = self._say_dropped
        self.log_request: Callable[[RequestLine], None] = self.sink.write_later
        """Writes the line of a request, `info` whatever its status, at the end of the loop's turn."""
        if self.sink.render is None:
            self.sink.render = self._render_requests
        else:  # the sink belongs to another Logging, with a service and secrets of its own
            self.log_request = lambda line: self.sink.write(self._render_requests([line]))
        self._takeover = Takeover(Handler(self.write))
        self._hooks = Hooks(self)
        self._restore_structlog: Callable[[], None] | None = None
        self._logger: Any = None

    def install(self) -> None:
        """Take over structlog, the standard library's logging, warnings, and uncaught exceptions.

        Called again, it also takes over what was configured in between (a server, a framework).
        """
        from watchkeeper.logs.bridges._structlog import configure  # noqa: PLC0415 - structlog takes 100 ms

        if self._restore_structlog is None:
            self._restore_structlog = configure(self)
        self._takeover.begin(self.level)
        self._hooks.begin()

    def uninstall(self) -> None:
        """Put back what was there before `install`, and write what is left."""
        if self._restore_structlog is not None:
            self._restore_structlog()
            self._restore_structlog = None
            self._takeover.end()
            self._hooks.end()
        self.flush()

    @property
    def logger(self) -> Any:
        """A structlog logger of this owner's, also where structlog is configured for another."""
        if self._logger is None:
            from watchkeeper.logs.bridges._structlog import make_logger  # noqa: PLC0415 - structlog takes 100 ms

            self._logger = make_logger(self)
        return self._logger

    def event(self, level: str, /, **fields: object) -> None:
        """Write a line with these fields; within a request it also carries the request's ids."""
        self.write(ALIASES.get(level, "info"), fields)

    def _render_requests(self, lines: list[RequestLine]) -> bytes:
        return b"" if self.threshold > _INFO else self._request_lines.render(lines)

    def exception(
        self, exc: BaseException, /, *, message: str, level: str = "error", **fields: object
    ) -> None:
        """Write the line of an exception, unless it has been logged for this request already.

        Args:
            exc: The exception.
            message: What was being done.
            level: Level of the line; default error.
            fields: What else belongs in the line.
        """
        name = ALIASES.get(level, "error")
        if LEVELS[name] >= self.threshold and claim_exception(exc):
            self.write(name, {"msg": message, **fields, "error": exc})

    def set_level(self, level: str) -> None:
        """Change the lowest level that is written, at once and for every logger."""
        self.level = parse_level(level)
        self.threshold = LEVELS[self.level]
        if self._restore_structlog is not None:
            self._takeover.set_level(self.level)

    def flush(self) -> None:
        """Write what is gathered."""
        self.sink.flush()

    def render(self, level: str, fields: dict[str, Any]) -> bytes:
        """Return the line of an event, its newline included."""
        return self._renderer.line(level, fields)

    def _say_dropped(self, lines: int) -> None:
        self.event("warn", type="log", msg="Log lines were dropped", dropped=lines)

    def write(self, level: str, fields: dict[str, Any]) -> None:
        """Write a line of a known level with these fields."""
        if LEVELS[level] >= self.threshold:
            self.sink.write(self._renderer.line(level, fields))


def line_handler(*, service: str, env: str, level: str = "info") -> Handler:
    """Return a handler for a server's own logging configuration (`--log-config`), by this name.

    A server with several workers has a parent that never imports the service: this gives its lines the same
    form. In the workers `Logging.install` takes over.

    Args:
        service: The `service` of each line.
        env: The `env` of each line.
        level: The lowest level that is written.
    """
    return Handler(Logging(service=service, env=env, level=level).write)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()

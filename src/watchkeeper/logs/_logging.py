"""The one owner of how lines come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs._errors import claim_exception
from watchkeeper.logs._hooks import Hooks
from watchkeeper.logs._levels import ALIASES, LEVELS, parse_level
from watchkeeper.logs._redaction import Redactor
from watchkeeper.logs._render import Renderer
from watchkeeper.logs._request_line import RequestFields, RequestLines
from watchkeeper.logs._sink import Sink
from watchkeeper.logs._stdlib import Handler, Takeover

if TYPE_CHECKING:
    from collections.abc import Callable

_INFO: Final = LEVELS["info"]
_QUICK_LINE: Final = 2048  # a longer request line carries something unusual


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
        self.level = parse_level(level)
        self.threshold: int = LEVELS[self.level]
        self.sink = Sink() if sink is None else sink
        self.redactor = Redactor() if redactor is None else redactor
        self._renderer = Renderer(_encodable(service), _encodable(env), self.redactor)
        # Bound once: the way of a request line is counted in tenths of a microsecond.
        self._request_line = RequestLines(self._renderer.service, self._renderer.env).encode
        self._is_free = self.redactor.is_free
        self._shortest_secret = self.redactor.shortest
        self._url = self.redactor.url
        self._put = self.sink.write
        if isinstance(self.sink, Sink) and self.sink.on_recover is None:
            self.sink.on_recover = self._say_dropped
        self._takeover = Takeover(Handler(self.write))
        self._hooks = Hooks(self)
        self._restore_structlog: Callable[[], None] | None = None
        self._logger: Any = None

    def install(self) -> None:
        """Take over structlog, the standard library's logging, warnings, and uncaught exceptions.

        Called again, it also takes over what was configured in between (a server, a framework).
        """
        from watchkeeper.logs._structlog import configure  # noqa: PLC0415 - structlog takes 100 ms

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
            from watchkeeper.logs._structlog import make_logger  # noqa: PLC0415 - structlog takes 100 ms

            self._logger = make_logger(self)
        return self._logger

    def event(self, level: str, /, **fields: object) -> None:
        """Write a line with these fields; within a request it also carries the request's ids."""
        self.write(ALIASES.get(level, "info"), fields)

    def request(  # noqa: PLR0913 - the contract's keys
        self,
        *,
        method: str,
        url: str,
        status: int,
        duration_ms: float,
        request_id: str,
        route: str,
        outcome: str,
        trace_id: str,
        span_id: str,
        bytes_sent: int,
    ) -> None:
        """Write the line of a request, `info` whatever its status."""
        if self.threshold > _INFO:
            return
        if len(request_id) < self._shortest_secret or self._is_free(request_id):
            try:
                line = self._request_line(
                    RequestFields(
                        method,
                        self._url(url),
                        status,
                        int(duration_ms * 1000) / 1000,
                        request_id,
                        route,
                        outcome,
                        trace_id,
                        span_id,
                        bytes_sent,
                    )
                )
            except (ValueError, OverflowError):  # a lone surrogate, an endless duration
                line = b"\xff"
            if line.isascii() and len(line) < _QUICK_LINE and "\x7f" not in url:
                self._put(line)
                return
        # Something here needs a closer look: hardly ever, and then it costs what any other line does.
        self.event(
            "info",
            type="request",
            method=method,
            url=self.redactor.url(url),
            statusCode=status,
            duration=duration_ms,
            requestId=request_id,
            route=route,
            outcome=outcome,
            trace_id=trace_id,
            span_id=span_id,
            bytes=bytes_sent,
        )

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

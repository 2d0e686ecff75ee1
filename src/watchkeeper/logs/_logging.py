"""The one owner of how lines come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs._clock import timestamp
from watchkeeper.logs._errors import claim_exception
from watchkeeper.logs._hooks import Hooks
from watchkeeper.logs._levels import ALIASES, LEVELS, parse_level
from watchkeeper.logs._redaction import Redactor
from watchkeeper.logs._render import MAX_LINE, Renderer
from watchkeeper.logs._request_line import RequestLine, encode_line
from watchkeeper.logs._sink import Sink
from watchkeeper.logs._stdlib import Handler, Takeover

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self.level = parse_level(level)
        self.threshold: int = LEVELS[self.level]
        self.sink = Sink() if sink is None else sink
        self.redactor = Redactor() if redactor is None else redactor
        self._renderer = Renderer(_encodable(service), _encodable(env), self.redactor)
        self._service = self._renderer.service
        self._env = self._renderer.env
        self._url = self.redactor.url
        self._takeover = Takeover(Handler(self._write))
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
        self._write(ALIASES.get(level, "info"), fields)

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
        url = self._url(url)
        duration = int(duration_ms * 1000) / 1000
        try:
            line: bytes = encode_line(
                (
                    RequestLine(
                        "info",
                        timestamp(),
                        self._service,
                        self._env,
                        "request",
                        method,
                        url,
                        status,
                        duration,
                        request_id,
                        route,
                        outcome,
                        trace_id,
                        span_id,
                        bytes_sent,
                    ),
                )
            )
            quick = len(line) < MAX_LINE and line.isascii() and b"\x7f" not in line
        except UnicodeEncodeError:
            quick = False
        if quick:
            self.sink.write(line)
            return
        self.event(
            "info",
            type="request",
            method=method,
            url=url,
            statusCode=status,
            duration=duration,
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
        if LEVELS[level] >= self.threshold and claim_exception(exc):
            self.event(level, msg=message, **fields, error=exc)

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

    def _write(self, level: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] >= self.threshold:
            self.sink.write(self._renderer.line(level, fields))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()

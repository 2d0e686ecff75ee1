"""The logging of one service: its events, request lines, and the bridges that it installs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs._event_log import EventLog
from watchkeeper.logs._levels import LEVELS
from watchkeeper.logs._render import Renderer
from watchkeeper.logs._request_line import RequestLineRenderer
from watchkeeper.logs.bridges._excepthooks import ExceptHooks
from watchkeeper.logs.bridges._stdlib import LineHandler, StdlibBridge
from watchkeeper.logs.output._sink import Sink
from watchkeeper.logs.redaction._redactor import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.logs._request_line import RequestLine

_INFO: Final = LEVELS["info"]


class Logging(EventLog):
    """Writes the lines of one service, and those of every library once it is installed."""

    def __init__(
        self,
        *,
        service: str,
        env: str,
        level: str = "info",
        sink: Sink | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self.redactor: Final = Redactor() if redactor is None else redactor
        renderer = Renderer(_encodable(service), _encodable(env), self.redactor)
        super().__init__(renderer, Sink() if sink is None else sink, level)
        self._request_lines = RequestLineRenderer(renderer, self.redactor)
        self.log_request: Callable[[RequestLine], None] = self.sink.defer
        """Writes the line of a request, always `info`, at the end of the event loop's turn."""
        if self.sink.render_deferred is None:
            self.sink.render_deferred = self._render_requests
        else:  # the sink belongs to another Logging, with its own service and secrets
            self.log_request = lambda line: self.sink.write(self._render_requests([line]))
        if self.sink.on_recover is None:
            self.sink.on_recover = self._log_dropped
        self._stdlib = StdlibBridge(LineHandler(self.write))
        self._hooks = ExceptHooks(self)
        self._restore_structlog: Callable[[], None] | None = None
        self._logger: Any = None

    def install(self) -> None:
        """Take over structlog, logging, warnings and uncaught exceptions; a second call adds new handlers."""
        from watchkeeper.logs.bridges._structlog import configure  # noqa: PLC0415 - structlog takes 100 ms

        if self._restore_structlog is None:
            self._restore_structlog = configure(self)
        self._stdlib.install(self.level)
        self._hooks.install()

    def uninstall(self) -> None:
        """Restore what `install` replaced, and flush."""
        if self._restore_structlog is not None:
            self._restore_structlog()
            self._restore_structlog = None
            self._stdlib.uninstall()
            self._hooks.uninstall()
        self.flush()

    def set_level(self, level: str) -> None:
        """Change the lowest level that is written, for every logger at once."""
        super().set_level(level)
        if self._restore_structlog is not None:
            self._stdlib.set_level(self.level)

    @property
    def logger(self) -> Any:
        """A structlog logger that writes here even where structlog is configured for another."""
        if self._logger is None:
            from watchkeeper.logs.bridges._structlog import make_logger  # noqa: PLC0415 - structlog takes 100 ms

            self._logger = make_logger(self)
        return self._logger

    def _render_requests(self, lines: list[RequestLine]) -> bytes:
        return b"" if self.threshold > _INFO else self._request_lines.render(lines)

    def _log_dropped(self, lines: int) -> None:
        self.event("warn", type="log", msg="Log lines were dropped", dropped=lines)


def line_handler(*, service: str, env: str, level: str = "info") -> LineHandler:
    """Return a handler for a server's own logging configuration (`--log-config`), by this name.

    The parent of a server's workers never imports the service; this handler gives its lines the same form. In
    the workers `Logging.install` takes over.
    """
    return LineHandler(Logging(service=service, env=env, level=level).write)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()

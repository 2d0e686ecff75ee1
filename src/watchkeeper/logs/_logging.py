"""The one owner of how lines come out."""

from __future__ import annotations

from functools import partial
from itertools import starmap
from math import isfinite
from operator import itemgetter
from time import time
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import asdict

from watchkeeper.logs._errors import claim_exception
from watchkeeper.logs._levels import ALIASES, LEVELS, parse_level
from watchkeeper.logs._render import Renderer
from watchkeeper.logs._request_line import UNSAMPLED, RequestFields, RequestHead, encode_lines
from watchkeeper.logs.bridges._excepthooks import Hooks
from watchkeeper.logs.bridges._stdlib import Handler, Takeover
from watchkeeper.logs.output._sink import Sink
from watchkeeper.logs.redaction._redactor import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.logs._request_line import EndedRequest

_INFO: Final = LEVELS["info"]
_REMEMBERED_URLS: Final = 1024
_SHORT_URL: Final = 128
# Where in an ended request they are.
_METHOD: Final = 0
_URL: Final = 1
_REQUEST_ID: Final = 4
_ROUTE: Final = 5
_TRACE_ID: Final = 7
_method_of: Final = itemgetter(_METHOD)
_url_of: Final = itemgetter(_URL)
_request_id_of: Final = itemgetter(_REQUEST_ID)
_route_of: Final = itemgetter(_ROUTE)
_trace_id_of: Final = itemgetter(_TRACE_ID)
_USUAL_METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"),
)

# What is longer needs a closer look, as what is not ASCII does.
_USUAL_URL: Final = 1024


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
        # Bound once: the way of a request line is counted in tenths of a microsecond.
        self._head_at = RequestHead(self._renderer.service, self._renderer.env).at
        self._plain_urls: set[str] = set()
        self._plain_routes: set[str] = set()
        if isinstance(self.sink, Sink) and self.sink.on_recover is None:
            self.sink.on_recover = self._say_dropped
        self.say_request: Callable[[EndedRequest], None] = self.sink.write_later
        """Takes a request whose line is made at the end of the loop's turn."""
        if self.sink.render is None:
            self.sink.render = self._render_requests
        else:  # of another owner, with a service and secrets of its own
            self.say_request = lambda ended: self.sink.write(self._render_requests([ended]))
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
        """Write the line of a request, `info` whatever its status, at the end of the loop's turn.

        Args:
            method: As received.
            url: Path and query as received.
            status: Of the response.
            duration_ms: To its last byte.
            request_id: By which its lines are found.
            route: Template of the route.
            outcome: How it ended.
            trace_id: Of the request's trace.
            span_id: This service's part of it.
            bytes_sent: Of the response's body.
        """
        try:
            duration = int(duration_ms * 1000) / 1000
        except (ValueError, OverflowError):  # an endless duration, or none
            duration = duration_ms
        ended: EndedRequest = (
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
            UNSAMPLED,
        )
        if isfinite(duration):
            self.say_request(ended)
        else:
            self.sink.write(self._careful_line(ended))

    def _render_requests(self, ended: list[EndedRequest]) -> bytes:
        if self.threshold > _INFO:
            return b""
        lines = self._usual_lines(ended)
        if lines is not None:
            return lines
        if len(ended) > 1:
            return b"".join([self._render_requests([one]) for one in ended])
        return self._careful_line(ended[0])

    def _usual_lines(self, ended: list[EndedRequest]) -> bytes | None:
        """Return the lines of these requests, or None where one of them needs a closer look.

        In loops of C: there are as many lines in a turn as the service is busy.
        """
        try:
            urls, routes = map(_url_of, ended), map(_route_of, ended)
            if not (
                (self._plain_urls.issuperset(map(_url_of, ended)) or all(map(self._is_plain, urls)))
                and (self._plain_routes.issuperset(map(_route_of, ended)) or all(map(self._is_clean, routes)))
                and _USUAL_METHODS.issuperset(map(_method_of, ended))
                # What a client sends as an id may be a secret: all of a turn are looked through as one text.
                and self._hide_nothing(ended)
            ):
                return None
            level = self._head_at(int(time() * 1000))
            lines = encode_lines(list(starmap(partial(RequestFields, level), ended)))
        except (TypeError, ValueError, OverflowError):  # a lone surrogate, or what an app calls a status
            return None
        return lines if lines.isascii() and b"\x7f" not in lines else None

    def _careful_line(self, ended: EndedRequest) -> bytes:
        # Something here needs a closer look: hardly ever, and then it costs what any other line does.
        fields = asdict(RequestFields(self._head_at(0), *ended))
        del fields["level"]
        fields["url"] = self.redactor.url(fields["url"])
        plain = {key: value for key, value in fields.items() if value is not UNSAMPLED}
        return self._renderer.line("info", {"type": "request", **plain})

    def _hide_nothing(self, ended: list[EndedRequest]) -> bool:
        is_plain = self.redactor.is_plain
        return is_plain("\n".join(map(_request_id_of, ended))) and (
            # A trace's are hex digits: only a registered secret can look like them.
            not self.redactor.knows_secrets or is_plain("\n".join(map(_trace_id_of, ended)))
        )

    def _is_clean(self, route: str) -> bool:
        if len(route) > _USUAL_URL or self.redactor.text(route) != route:
            return False
        if len(self._plain_routes) < _REMEMBERED_URLS:
            self._plain_routes.add(route)
        return True

    def _is_plain(self, url: str) -> bool:
        if len(url) > _USUAL_URL or self.redactor.url(url) != url:
            return False
        if len(url) <= _SHORT_URL:
            if len(self._plain_urls) >= _REMEMBERED_URLS:
                self._plain_urls.clear()  # paths with ids are without end
            self._plain_urls.add(url)
        return True

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

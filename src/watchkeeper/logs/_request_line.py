"""The request line: its fields, and how the lines of one turn of the event loop are rendered together.

It is by far the most frequent line, so what can be done once per batch is not done per line. The head (level,
time, service) is encoded once a millisecond, and one call encodes all lines.
"""

from __future__ import annotations

from operator import attrgetter
from time import time
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from watchkeeper.logs._clock import format_second

if TYPE_CHECKING:
    from watchkeeper.logs._render import Renderer
    from watchkeeper.logs.redaction._redactor import Redactor

SampleRate: TypeAlias = float | msgspec.UnsetType

UNSAMPLED: Final = msgspec.UNSET  # the rate of a line that was not sampled; such a line has no `sampleRate`

_CACHED_URLS: Final = 1024
_SHORT_URL: Final = 128
_LONG_URL: Final = 1024
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
_encode_lines: Final = msgspec.json.Encoder().encode_lines
_NO_HEAD: Final = msgspec.Raw(b"")
_method_of: Final = attrgetter("method")
_url_of: Final = attrgetter("url")
_route_of: Final = attrgetter("route")
_request_id_of: Final = attrgetter("request_id")
_trace_id_of: Final = attrgetter("trace_id")


class RequestLine(
    msgspec.Struct,
    kw_only=True,
    gc=False,
    rename={
        "status": "statusCode",
        "request_id": "requestId",
        "bytes_sent": "bytes",
        "sample_rate": "sampleRate",
    },
):
    """What is logged of one request, in the order of the line's keys."""

    level: msgspec.Raw = _NO_HEAD
    """Set when the line is rendered. msgspec copies a Raw unchanged: it also holds the keys up to `type`."""
    method: str
    url: str  # path and query as received
    status: int
    duration: float  # milliseconds to the last byte of the response; finite
    request_id: str
    route: str
    outcome: str
    trace_id: str
    span_id: str
    bytes_sent: int
    sample_rate: SampleRate = UNSAMPLED


class RequestLineRenderer:
    """Renders request lines.

    URLs and routes that need no masking are remembered, so that a set operation in C checks a batch. A batch
    with any other line is rendered line by line.
    """

    def __init__(self, renderer: Renderer, redactor: Redactor) -> None:
        self._renderer = renderer
        self._redactor = redactor
        self._constant = _encode_lines(
            [{"service": renderer.service, "env": renderer.env, "type": "request"}]
        )[1:-2]
        self._head = (-1, _NO_HEAD)
        self._second = (-1, b"")
        self._clean_urls: set[str] = set()
        self._clean_routes: set[str] = set()

    def render(self, lines: list[RequestLine]) -> bytes:
        """Return these requests' lines, in order."""
        rendered = self._render_clean(lines)
        if rendered is not None:
            return rendered
        if len(lines) > 1:
            return b"".join([self.render([line]) for line in lines])
        return self._render_unclean(lines[0])

    def _render_clean(self, lines: list[RequestLine]) -> bytes | None:
        """Return the lines, or None if any of them needs masking or escaping."""
        try:
            if not self._are_clean(lines):
                return None
            head = self._head_at(int(time() * 1000))
            for line in lines:
                line.level = head
            rendered = _encode_lines(lines)
        except (TypeError, ValueError, OverflowError):  # a lone surrogate, or a status that is no number
            return None
        return rendered if rendered.isascii() and b"\x7f" not in rendered else None

    def _are_clean(self, lines: list[RequestLine]) -> bool:
        urls, routes = map(_url_of, lines), map(_route_of, lines)
        return (
            (self._clean_urls.issuperset(map(_url_of, lines)) or all(map(self._is_clean_url, urls)))
            and (
                self._clean_routes.issuperset(map(_route_of, lines)) or all(map(self._is_clean_route, routes))
            )
            and _METHODS.issuperset(map(_method_of, lines))
            # A client may send a secret as its request id. One search covers the ids of the whole batch.
            and self._redactor.is_plain("\n".join(map(_request_id_of, lines)))
            # Trace ids are hex digits: only a registered secret can look like one.
            and (
                not self._redactor.knows_secrets
                or self._redactor.is_plain("\n".join(map(_trace_id_of, lines)))
            )
        )

    def _render_unclean(self, line: RequestLine) -> bytes:
        fields = {
            key: value
            for key, value in zip(line.__struct_encode_fields__, msgspec.structs.astuple(line), strict=True)
            if value is not UNSAMPLED
        }
        fields["url"] = self._redactor.url(line.url)
        del fields["level"]
        return self._renderer.line("info", {"type": "request", **fields})

    def _is_clean_url(self, url: str) -> bool:
        if len(url) > _LONG_URL or self._redactor.url(url) != url:
            return False
        if len(url) <= _SHORT_URL:
            if len(self._clean_urls) >= _CACHED_URLS:
                self._clean_urls.clear()  # paths that contain ids never stop coming
            self._clean_urls.add(url)
        return True

    def _is_clean_route(self, route: str) -> bool:
        if len(route) > _LONG_URL or self._redactor.text(route) != route:
            return False
        if len(self._clean_routes) < _CACHED_URLS:
            self._clean_routes.add(route)
        return True

    def _head_at(self, millisecond: int) -> msgspec.Raw:
        """Return the value of `level` and the keys after it, up to `type`; the time is since the epoch."""
        head = self._head  # read once: another thread may replace it
        if head[0] == millisecond:
            return head[1]
        second, rest = divmod(millisecond, 1000)
        start = self._second
        if start[0] != second:
            start = self._second = (second, b'"info","time":"' + format_second(second).encode())
        raw = msgspec.Raw(b'%b.%03dZ",%b' % (start[1], rest, self._constant))
        self._head = millisecond, raw
        return raw

"""What the recorders of requests and of websocket connections share."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Final

from watchkeeper.http._ids import read_ids
from watchkeeper.http._sampling import sample_floor
from watchkeeper.http.routes._labels import UNMATCHED
from watchkeeper.logs._request_line import UNSAMPLED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from watchkeeper.http._asgi import Receive, Scope, Send
    from watchkeeper.logs._logging import Logging
    from watchkeeper.logs._request_line import RequestLine, SampleRate
    from watchkeeper.metrics._http import HttpMetrics, RequestSeries
    from watchkeeper.metrics._websockets import WebsocketMetrics
    from watchkeeper.settings import Settings

SCOPE_KEY: Final = "watchkeeper"  # key under which the scope, and each copy of it, holds the recorder

_CLIENT_ERRORS: Final = frozenset(("ClientDisconnect", "ClientDisconnected", "WebSocketDisconnect"))
"""What Starlette, uvicorn and Quart raise when the client has disconnected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderConfig:
    """Configuration of the recorders of one app; what each request reads is looked up here once."""

    logs: Logging
    log_request: Callable[[RequestLine], None]
    find_series: Callable[[str, str, int], RequestSeries] | None
    duration_scale: float
    websocket_metrics: WebsocketMetrics | None
    request_lines: bool
    probe_lines: bool
    sample_rate: SampleRate
    sample_floor: str
    resolve_route: Callable[[Scope], str]

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        logs: Logging,
        metrics: HttpMetrics,
        websocket_metrics: WebsocketMetrics,
        resolve_route: Callable[[Scope], str],
    ) -> Self:
        """Apply the settings: what is disabled is None, and lines are sampled by their trace."""
        sample = settings.request_sample
        return cls(
            logs=logs,
            log_request=logs.log_request,
            find_series=metrics.series if settings.metrics else None,
            duration_scale=metrics.scale,
            websocket_metrics=websocket_metrics if settings.metrics else None,
            request_lines=settings.request_lines,
            probe_lines=settings.probe_lines,
            sample_rate=UNSAMPLED if sample >= 1.0 else sample,
            sample_floor=sample_floor(sample),
            resolve_route=resolve_route,
        )


class Recorder:
    """Watches the ASGI messages of one request or websocket connection."""

    # Slots, each set in __init__: a default of the class would be looked up in two places.
    __slots__ = (
        "_client_left",
        "_config",
        "_failed",
        "_receive",
        "_scope",
        "_send",
        "_send_error",
        "_start",
        "_url",
        "context",
        "route",
    )

    def __init__(self, config: RecorderConfig, scope: Scope, receive: Receive, send: Send) -> None:
        self._start = perf_counter()
        self._config = config
        self._scope = scope
        self._receive = receive
        self._send = send
        # As received, and before the app runs: Litestar rewrites the scope for what it mounts.
        path: bytes = scope.get("raw_path") or str(scope["path"]).encode("utf-8", "surrogatepass")
        query = scope.get("query_string")
        self._url = path + b"?" + query if query else path
        self._send_error: OSError | None = None
        self._client_left = self._failed = False
        self.route = ""
        self.context = read_ids(scope["headers"])
        scope[SCOPE_KEY] = self

    def note_exception(self, error: BaseException) -> None:
        """Log an exception that the framework handles by itself, and count the exchange as failed."""
        if not (self._client_left and self._means_client_left(error)):
            self._failed = True
            self._log_exception(error)

    def _log_exception(self, error: BaseException) -> None:
        self._config.logs.exception(error, message="Unhandled exception.")  # noqa: LOG004 - not logging's

    def _means_client_left(self, error: BaseException) -> bool:
        """Return whether a framework, or the server's `send`, raised `error` because the client left."""
        if type(error).__name__ in _CLIENT_ERRORS:
            return True
        refused = self._send_error
        return refused is not None and refused in (error, error.__cause__, error.__context__)

    def _resolve_route(self) -> str:
        """Return the route template; a resolver that fails must not break the response."""
        try:
            return self._config.resolve_route(self._scope)
        except Exception as error:  # noqa: BLE001 - the service's own resolver may raise anything
            self._log_exception(error)
            return UNMATCHED


def name_route(scope: Mapping[str, object], template: str) -> None:
    """Name the route that serves a request, for a framework that the library does not know.

    Args:
        scope: Scope of a watched request or websocket, or a copy of it.
        template: Template of the route, never a raw path: each value is a series. Name the route of a
            websocket before it is accepted.
    """
    recorder = scope.get(SCOPE_KEY)
    if isinstance(recorder, Recorder):
        recorder.route = template


async def note_exception(error: BaseException, scope: Mapping[str, object]) -> None:
    """Log an exception that a framework handles itself and does not raise.

    It has the signature of Litestar's `after_exception` hook. An exception whose `status_code` is below 500
    is a response, not a failure, and is ignored.
    """
    recorder = scope.get(SCOPE_KEY)
    status = getattr(error, "status_code", 500)
    if isinstance(recorder, Recorder) and not (isinstance(status, int) and status < 500):
        recorder.note_exception(error)

"""The library's own endpoints: `/health`, `/health/detailed`, `/livez`, `/readyz` and `/metrics`."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from watchkeeper.health._bounded import BoundedCall, SharedCall
from watchkeeper.health._database import DATABASE_CHECK
from watchkeeper.http._errors import error_body
from watchkeeper.http._local import is_local, is_loopback
from watchkeeper.logs._exceptions import describe_exception
from watchkeeper.metrics.exposition._exposition import accepts_gzip, prefers_openmetrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from watchkeeper.health._checks import CheckResult
    from watchkeeper.health._runner import CheckRunner
    from watchkeeper.http._asgi import Scope
    from watchkeeper.logs._logging import Logging
    from watchkeeper.metrics.exposition._exporter import Exporter
    from watchkeeper.metrics.exposition._exposition import Exposition
    from watchkeeper.settings import Settings

_REFRESH_TIMEOUT: Final = timedelta(seconds=1)

_BEARER: Final = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([^ ]+) *")
_JSON: Final = b"application/json"
_LOCAL_ONLY: Final = (
    "Metrics are open to this machine only: set METRICS_TOKEN and send it as 'Authorization: Bearer …', or"
    " connect over loopback without a proxy."
)
_TOKEN_REQUIRED: Final = "Send the metrics token as 'Authorization: Bearer …'."  # noqa: S105 - no token


class Response(NamedTuple):
    """A complete response: status, headers and body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: tuple[bytes, ...]


class Endpoints:
    """Handles requests for the library's own paths.

    `ready` and `details` return what `/readyz` and, with the token, `/health/detailed` show. `before_scrape`
    run concurrently before each scrape, for at most a second.
    """

    def __init__(  # noqa: PLR0913 - composition root
        self,
        settings: Settings,
        *,
        logging: Logging,
        exporter: Exporter,
        checks: CheckRunner,
        ready: Callable[[], Awaitable[Mapping[str, bool]]],
        details: Callable[[], Awaitable[Mapping[str, Any]]],
        before_scrape: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        self._token = settings.metrics_token
        self._open_to_local = is_loopback(settings.host)
        self._logging = logging
        self._exporter = exporter
        self._checks = checks
        self._ready = ready
        self._details = details
        self._refreshes = [_Refresh(call, logging) for call in before_scrape]
        # Concurrent scrapes share one result; gzip compresses the plain result of its format.
        self._scrapes = {
            (openmetrics, gzip): SharedCall(partial(self._scrape, openmetrics=openmetrics, gzip=gzip))
            for openmetrics in (True, False)
            for gzip in (True, False)
        }
        health = settings.health
        self._handlers: dict[str, Callable[[Scope, str], Awaitable[Response]]] = {
            "/health": self._health if health else self._disabled,
            "/health/detailed": self._detailed if health else self._disabled,
            "/readyz": self._readyz if health else self._disabled,
            "/livez": self._livez,
            "/metrics": self._metrics if settings.metrics else self._disabled,
        }
        self.paths = frozenset(self._handlers)  # the library's own paths, relative to the root path

    async def handle(self, path: str, scope: Scope, request_id: str) -> Response:
        """Handle a request for one of `paths`."""
        if scope["method"] in {"GET", "HEAD"}:
            return await self._handlers[path](scope, request_id)
        return _error(405, "Only GET and HEAD are allowed.", request_id, (b"allow", b"GET, HEAD"))

    async def _livez(self, _scope: Scope, _request_id: str) -> Response:
        return _json(200, {"status": "ok"})

    async def _readyz(self, _scope: Scope, _request_id: str) -> Response:
        checks = dict(await self._ready())
        ok = all(checks.values())
        return _json(200 if ok else 503, {"status": "ok" if ok else "error", "checks": checks})

    async def _health(self, _scope: Scope, _request_id: str) -> Response:
        if DATABASE_CHECK not in self._checks.names:
            return _json(200, {"status": "ok"})
        results = await self._checks.run(DATABASE_CHECK)
        if results[DATABASE_CHECK].ok:
            return _json(200, {"status": "ok", "db": "connected"})
        return _json(503, {"status": "error", "db": "disconnected"})

    async def _detailed(self, scope: Scope, _request_id: str) -> Response:
        results = await self._checks.run()
        ok = all(result.ok for result in results.values())
        body: dict[str, Any] = {
            "status": "ok" if ok else "degraded",
            "checks": {name: result.ok for name, result in results.items()},
        }
        if self._is_authorized(scope):
            body["details"] = {
                **await self._details(),
                "checks": {name: self._check_details(result) for name, result in results.items()},
            }
        return _json(200 if ok else 503, body)

    async def _metrics(self, scope: Scope, request_id: str) -> Response:
        if self._token is not None:
            if not self._is_authorized(scope):
                challenge = (b"www-authenticate", b'Bearer realm="metrics"')
                return _error(401, _TOKEN_REQUIRED, request_id, challenge)
        elif not self._open_to_local or not is_local(scope):
            return _error(403, _LOCAL_ONLY, request_id)
        openmetrics = prefers_openmetrics(_header(scope, b"accept"))
        gzip = accepts_gzip(_header(scope, b"accept-encoding"))
        exposition = await self._scrapes[openmetrics, gzip].join()
        extra_headers = [(b"vary", b"accept, accept-encoding")]
        if exposition.encoding:
            extra_headers.append((b"content-encoding", exposition.encoding.encode("ascii")))
        return _make_response(200, exposition.chunks, exposition.content_type.encode("ascii"), *extra_headers)

    async def _scrape(self, *, openmetrics: bool, gzip: bool) -> Exposition:
        if gzip:
            plain = await self._scrapes[openmetrics, False].join()
            return await asyncio.to_thread(plain.compressed)
        await asyncio.gather(*(refresh.run() for refresh in self._refreshes))
        return await self._exporter.scrape(openmetrics=openmetrics)

    async def _disabled(self, _scope: Scope, request_id: str) -> Response:
        return _error(404, "This endpoint is disabled.", request_id)

    def _is_authorized(self, scope: Scope) -> bool:
        credentials = [value for name, value in scope["headers"] if name == b"authorization"]
        match = _BEARER.fullmatch(credentials[0]) if len(credentials) == 1 else None
        return match is not None and self._token is not None and self._token.matches(match[1])

    def _check_details(self, result: CheckResult) -> dict[str, Any]:
        return {
            "ok": result.ok,
            "checkedAt": round(result.checked_at, 3),
            "latencyMs": round(result.latency.total_seconds() * 1000, 3),
            "error": None if result.error is None else self._logging.redactor.text(result.error),
        }


class _Refresh:
    """Calls a refresh before scrapes; logs when it starts to fail and when it recovers."""

    def __init__(self, call: Callable[[], Awaitable[None]], logging: Logging) -> None:
        self._name: str = getattr(call, "__qualname__", type(call).__qualname__)
        self._shared = SharedCall(BoundedCall(call, _REFRESH_TIMEOUT))
        self._logging = logging
        self._failing = False

    async def run(self) -> None:
        failure = await self._shared.join()
        was_failing, self._failing = self._failing, failure is not None
        if was_failing == self._failing:
            return
        if failure is None:
            self._logging.event("info", type="refresh", name=self._name, status="resumed")
            return
        self._logging.event(
            "error",
            type="refresh",
            name=self._name,
            status="failed",
            msg=f"{self._name} failed before a scrape: /metrics is served without it.",
            error=describe_exception(failure),
        )


def _header(scope: Scope, header: bytes) -> str:
    """Return the values of a header joined by commas (RFC 9110, section 5.3)."""
    return b",".join(value for name, value in scope["headers"] if name == header).decode("latin-1")


def _make_response(
    status: int, body: tuple[bytes, ...], content_type: bytes, *extra_headers: tuple[bytes, bytes]
) -> Response:
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % sum(map(len, body))),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *extra_headers,
    ]
    return Response(status, headers, body)


def _json(status: int, body: Mapping[str, Any]) -> Response:
    return _make_response(status, (msgspec.json.encode(body),), _JSON)


def _error(status: int, message: str, request_id: str, *extra_headers: tuple[bytes, bytes]) -> Response:
    body = error_body(status, message=message, request_id=request_id)
    return _make_response(status, (body,), _JSON, *extra_headers)

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
from watchkeeper.logs import describe_exception
from watchkeeper.metrics import accepts_gzip, prefers_openmetrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from watchkeeper.health._checks import CheckResult
    from watchkeeper.health._runner import CheckRunner
    from watchkeeper.http._asgi import Scope
    from watchkeeper.logs import Logging
    from watchkeeper.metrics import Exposition, Workers
    from watchkeeper.settings import Settings

REFRESH_TIMEOUT: Final = timedelta(seconds=1)

_BEARER: Final = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([^ ]+) *")
_JSON: Final = b"application/json"
_CLOSED: Final = (
    "Open to this machine only: set METRICS_TOKEN and send it as 'Authorization: Bearer …', or ask over"
    " loopback without a proxy."
)
_NO_TOKEN: Final = "Send the metrics token as 'Authorization: Bearer …'."  # noqa: S105 - a sentence, no token


class Answer(NamedTuple):
    """A whole response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: tuple[bytes, ...]


class Endpoints:
    """Answers the library's own paths, exactly as the service's contract says.

    Args:
        settings: Which of them are on, and the token.
        workers: What `/metrics` shows; None closes it.
        runner: The checks; the one named `db` is the database's.
        ready: What `/readyz` asks: names, and whether each is as it should be.
        before_scrape: Awaited together before each scrape, for a second at most.
        details: What `/health/detailed` adds for those with the token.
        bound_to_loopback: False closes `/metrics` where there is no token; default: by `settings.host`.
        logging: Where a refresh that fails, or works again, is said, and what keeps secrets out of details.
    """

    def __init__(  # noqa: PLR0913 - the keeper joins all of it here
        self,
        *,
        settings: Settings,
        workers: Workers | None,
        runner: CheckRunner | None,
        ready: Callable[[], Awaitable[Mapping[str, bool]]] | None = None,
        before_scrape: Sequence[Callable[[], Awaitable[None]]] = (),
        details: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
        bound_to_loopback: bool | None = None,
        logging: Logging | None = None,
    ) -> None:
        self._token = settings.metrics_token
        self._workers = workers if settings.metrics else None
        # Scrapes that overlap share one; a compressed one is made of the plain one of its format.
        self._scrapes = {
            (openmetrics, gzip): SharedCall(partial(self._scrape, openmetrics=openmetrics, gzip=gzip))
            for openmetrics in (True, False)
            for gzip in (True, False)
        }
        self._runner = runner
        self._ready = ready
        self._details = details
        self._open_to_local = is_loopback(settings.host) if bound_to_loopback is None else bound_to_loopback
        self._lines = logging
        self._refreshes = [_Refresh(call, logging) for call in before_scrape]
        health = settings.health
        self._answers: dict[str, Callable[[Scope, str], Awaitable[Answer]]] = {
            "/health": self._health if health else self._not_found,
            "/health/detailed": self._detailed if health else self._not_found,
            "/readyz": self._readyz if health else self._not_found,
            "/livez": self._livez,
            "/metrics": self._not_found if self._workers is None else self._metrics,
        }
        self.paths = frozenset(self._answers)
        """The library's own paths, below the root path."""

    async def answer(self, path: str, scope: Scope, request_id: str) -> Answer:
        """Answer a request for one of the library's paths.

        Args:
            path: One of `paths`.
            scope: Of the request.
            request_id: For the body of an error.
        """
        if scope["method"] in {"GET", "HEAD"}:
            return await self._answers[path](scope, request_id)
        return _error(405, "Only GET and HEAD are known here.", request_id, (b"allow", b"GET, HEAD"))

    async def _livez(self, _scope: Scope, _request_id: str) -> Answer:
        return _json(200, {"status": "ok"})

    async def _readyz(self, _scope: Scope, _request_id: str) -> Answer:
        checks = {} if self._ready is None else dict(await self._ready())
        ok = all(checks.values())
        return _json(200 if ok else 503, {"status": "ok" if ok else "error", "checks": checks})

    async def _health(self, _scope: Scope, _request_id: str) -> Answer:
        if self._runner is None or DATABASE_CHECK not in self._runner.names:
            return _json(200, {"status": "ok"})
        results = await self._runner.run(DATABASE_CHECK)
        if results[DATABASE_CHECK].ok:
            return _json(200, {"status": "ok", "db": "connected"})
        return _json(503, {"status": "error", "db": "disconnected"})

    async def _detailed(self, scope: Scope, _request_id: str) -> Answer:
        results = {} if self._runner is None else await self._runner.run()
        ok = all(result.ok for result in results.values())
        body: dict[str, Any] = {
            "status": "ok" if ok else "degraded",
            "checks": {name: result.ok for name, result in results.items()},
        }
        if self._is_authorized(scope):
            body["details"] = {
                **(await self._details() if self._details else {}),
                "checks": {name: self._told(result) for name, result in results.items()},
            }
        return _json(200 if ok else 503, body)

    async def _metrics(self, scope: Scope, request_id: str) -> Answer:
        if self._token is not None:
            if not self._is_authorized(scope):
                challenge = (b"www-authenticate", b'Bearer realm="metrics"')
                return _error(401, _NO_TOKEN, request_id, challenge)
        elif not self._open_to_local or not is_local(scope):
            return _error(403, _CLOSED, request_id)
        openmetrics = prefers_openmetrics(_header(scope, b"accept"))
        gzip = accepts_gzip(_header(scope, b"accept-encoding"))
        exposition = await self._scrapes[openmetrics, gzip].join()
        more = [(b"vary", b"accept, accept-encoding")]
        if exposition.encoding:
            more.append((b"content-encoding", exposition.encoding.encode("ascii")))
        return _answer(200, exposition.chunks, exposition.content_type.encode("ascii"), *more)

    async def _scrape(self, *, openmetrics: bool, gzip: bool) -> Exposition:
        if gzip:
            plain = await self._scrapes[openmetrics, False].join()
            return await asyncio.to_thread(plain.compressed)
        await asyncio.gather(*(refresh.run() for refresh in self._refreshes))
        assert self._workers is not None  # noqa: S101 - else _not_found answers
        return await self._workers.scrape(openmetrics=openmetrics)

    async def _not_found(self, _scope: Scope, request_id: str) -> Answer:
        return _error(404, "This endpoint is switched off.", request_id)

    def _is_authorized(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        match = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
        return match is not None and self._token is not None and self._token.matches(match[1])

    def _told(self, result: CheckResult) -> dict[str, Any]:
        error = result.error
        if error is not None and self._lines is not None:
            error = self._lines.redactor.text(error)
        return {
            "ok": result.ok,
            "checkedAt": round(result.checked_at, 3),
            "latencyMs": round(result.latency.total_seconds() * 1000, 3),
            "error": error,
        }


class _Refresh:
    """One refresh, which tells of an outage when it begins and when it is over, not with each scrape.

    Args:
        call: What is awaited; its name stands in the lines.
        logging: Where they go.
    """

    def __init__(self, call: Callable[[], Awaitable[None]], logging: Logging | None) -> None:
        self._name: str = getattr(call, "__qualname__", type(call).__qualname__)
        self._shared = SharedCall(BoundedCall(call, REFRESH_TIMEOUT))
        self._lines = logging
        self._failing = False

    async def run(self) -> None:
        failure = await self._shared.join()
        was, self._failing = self._failing, failure is not None
        if self._lines is None or was == self._failing:
            return
        if failure is None:
            self._lines.event("info", type="refresh", name=self._name, status="resumed")
            return
        self._lines.event(
            "error",
            type="refresh",
            name=self._name,
            status="failed",
            msg=f"{self._name} failed before a scrape: /metrics goes on without it.",
            error=describe_exception(failure),
        )


def _header(scope: Scope, wanted: bytes) -> str:
    """Return all values of a header, as one (RFC 9110, 5.3)."""
    return b",".join(value for name, value in scope["headers"] if name == wanted).decode("latin-1")


def _answer(status: int, body: tuple[bytes, ...], content_type: bytes, *more: tuple[bytes, bytes]) -> Answer:
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % sum(map(len, body))),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *more,
    ]
    return Answer(status, headers, body)


def _json(status: int, body: Mapping[str, Any]) -> Answer:
    return _answer(status, (msgspec.json.encode(body),), _JSON)


def _error(status: int, message: str, request_id: str, *more: tuple[bytes, bytes]) -> Answer:
    body = error_body(status, message=message, request_id=request_id)
    return _answer(status, (body,), _JSON, *more)

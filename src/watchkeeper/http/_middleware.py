"""The ASGI edge: one pass a request, around any ASGI app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchkeeper.http._exchange import SCOPE_KEY, Exchange
from watchkeeper.http._ids import read_ids
from watchkeeper.http._routes import resolver_for
from watchkeeper.logs import bind_request, unbind_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from watchkeeper.http._asgi import ASGIApp, Receive, Scope, Send
    from watchkeeper.http._endpoints import Endpoints
    from watchkeeper.logs import Logging
    from watchkeeper.metrics import HttpMetrics


class Middleware:
    """Gives each request its ids, and on the last byte of its body one count, one duration and one line.

    Args:
        app: The watched app.
        logging: Writes the lines.
        metrics: Counts the requests; None counts nothing.
        endpoints: The library's own; None has none.
        request_lines: Whether requests have a line.
        probe_lines: Whether successful requests for the library's own endpoints have one too.
        resolve_route: Returns the route template of a dispatched scope; default: what fits the framework.
    """

    def __init__(  # noqa: PLR0913 - the keeper joins all of it here
        self,
        app: ASGIApp,
        *,
        logging: Logging,
        metrics: HttpMetrics | None,
        endpoints: Endpoints | None,
        request_lines: bool = True,
        probe_lines: bool = False,
        resolve_route: Callable[[Scope], str] | None = None,
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._request_lines = request_lines
        self._probe_lines = probe_lines
        self.lines = logging
        self.metrics = metrics
        self.resolve_route = resolver_for(app) if resolve_route is None else resolve_route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] != "http":
            await self._pass_on(scope, receive, send)
            return
        exchange = Exchange(self, scope, receive, send)
        token = bind_request(exchange.context)
        try:
            path = _path_below_root(scope)
            if self._endpoints is not None and self._endpoints.owns(path):
                exchange.route = path
                await self._answer(self._endpoints, path, scope, exchange)
            else:
                await self._app(scope, exchange.receive, exchange.send)
            await exchange.end()
        except Exception as error:  # noqa: BLE001 - whatever an app raises is answered and said here
            await exchange.fail(error)
        except BaseException:
            exchange.cancel()
            raise
        finally:
            unbind_request(token)
            exchange.let_go()

    def wants_line(self, route: str, status: int, outcome: str) -> bool:
        """Say whether a request has a line: all have, but for successful ones of our own endpoints."""
        if not self._request_lines:
            return False
        is_own = self._endpoints is not None and self._endpoints.owns(route)
        return self._probe_lines or not is_own or status >= 400 or outcome != "completed"

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        token = bind_request(read_ids(scope["headers"]))
        try:
            await self._app(scope, receive, send)
        finally:
            unbind_request(token)

    @staticmethod
    async def _answer(endpoints: Endpoints, path: str, scope: Scope, exchange: Exchange) -> None:
        answer = await endpoints.answer(path, scope, exchange.context.request_id)
        await exchange.send(
            {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
        )
        chunks = (b"",) if scope["method"] == "HEAD" else answer.body
        for chunk in chunks[:-1]:
            await exchange.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await exchange.send({"type": "http.response.body", "body": chunks[-1], "more_body": False})


def name_route(scope: Mapping[str, object], template: str) -> None:
    """Say which route serves a request, for a framework that the library does not know.

    Args:
        scope: Of a watched request; any copy of it will do.
        template: Of the route, never a raw path: each one is a series.
    """
    exchange = scope.get(SCOPE_KEY)
    if isinstance(exchange, Exchange):
        exchange.route = template


async def note_exception(error: BaseException, scope: Mapping[str, object]) -> None:
    """Log an exception that a framework answers by itself and does not raise.

    It has the form of Litestar's `after_exception` hook. What the framework means as an answer below 500 (by
    its `status_code`) is no failure and is left alone.

    Args:
        error: What was raised.
        scope: Of a watched request; any copy of it will do.
    """
    exchange = scope.get(SCOPE_KEY)
    status = getattr(error, "status_code", 500)
    if isinstance(exchange, Exchange) and not (isinstance(status, int) and status < 500):
        exchange.note(error)


def _path_below_root(scope: Scope) -> str:
    path, root = scope["path"], scope.get("root_path")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] == "/":
        return str(path[len(root) :])
    return str(path)

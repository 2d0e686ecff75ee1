"""The middleware around an app: one exchange a request, one socket a websocket connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchkeeper.http._asgi import SCOPE_KEY
from watchkeeper.http._exchange import Exchange
from watchkeeper.http._sampling import sample_floor
from watchkeeper.http._websocket import Socket
from watchkeeper.http.routes._resolve import resolver_for
from watchkeeper.logs import UNSAMPLED, bind_request, unbind_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from watchkeeper.http._asgi import ASGIApp, Receive, Scope, Send
    from watchkeeper.http._endpoints import Endpoints
    from watchkeeper.logs import Logging, SampleRate
    from watchkeeper.metrics import HttpMetrics, WebsocketMetrics


class Middleware:
    """Gives each request its ids, and on the last byte of its body one count, one duration and one line.

    Args:
        app: The watched app.
        logging: Writes the lines.
        metrics: Counts the requests; None counts nothing.
        endpoints: The library's own; None has none.
        websockets: Counts the websocket connections; None counts nothing.
        lifespan: Serves the lifespan; default: the app.
        request_lines: Whether requests and websocket connections have a line.
        request_sample: Share of the requests completed below 500 that keep their line; default 1, all.
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
        websockets: WebsocketMetrics | None = None,
        lifespan: ASGIApp | None = None,
        request_lines: bool = True,
        request_sample: float = 1.0,
        probe_lines: bool = False,
        resolve_route: Callable[[Scope], str] | None = None,
    ) -> None:
        self._app = app
        self._lifespan = app if lifespan is None else lifespan
        self._endpoints = endpoints
        self._own = frozenset[str]() if endpoints is None else endpoints.paths
        self._tells_probes = probe_lines
        # What each request needs is looked up once, here.
        self.lines = logging
        self.say = logging.say_request
        self.series = None if metrics is None else metrics.series
        self.scale = 1.0 if metrics is None else metrics.scale
        self.websockets = websockets
        self.request_lines = request_lines
        self.sample_rate: SampleRate = UNSAMPLED if request_sample >= 1.0 else request_sample
        self.sample_floor = sample_floor(request_sample)
        self.resolve_route = resolver_for(app) if resolve_route is None else resolve_route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        exchange = Exchange(self, scope, receive, send)
        token = bind_request(exchange.context)
        try:
            path = scope["path"] if not scope.get("root_path") else _path_below_root(scope)
            if path in self._own:
                exchange.is_probe = not self._tells_probes
                await self._answer(path, scope, exchange)
            else:
                await self._app(scope, exchange.receive, exchange.send)
            if not exchange.recorded:
                await exchange.end()
        except Exception as error:  # noqa: BLE001 - whatever an app raises is answered and said here
            await exchange.fail(error)
        except BaseException:
            exchange.cancel()
            raise
        finally:
            unbind_request(token)
            # Apart from the scope both are freed at once, and not by the garbage collector.
            scope.pop(SCOPE_KEY, None)

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        socket = Socket(self, scope, receive, send)
        token = bind_request(socket.context)
        try:
            await self._app(scope, socket.receive, socket.send)
            socket.end()
        except Exception as error:
            if not socket.fail(error):
                raise
        except BaseException:
            socket.cancel()
            raise
        finally:
            unbind_request(token)
            scope.pop(SCOPE_KEY, None)

    async def _answer(self, path: str, scope: Scope, exchange: Exchange) -> None:
        assert self._endpoints is not None  # noqa: S101 - else it would own no path
        exchange.route = path
        answer = await self._endpoints.answer(path, scope, exchange.context.request_id)
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
        scope: Of a watched request or websocket; any copy of it will do.
        template: Of the route, never a raw path: each one is a series. Of a websocket before it is accepted.
    """
    exchange = scope.get(SCOPE_KEY)
    if isinstance(exchange, Exchange | Socket):
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
    if isinstance(exchange, Exchange | Socket) and not (isinstance(status, int) and status < 500):
        exchange.note(error)


def _path_below_root(scope: Scope) -> str:
    path, root = scope["path"], scope["root_path"]
    if path.startswith(root) and path[len(root) : len(root) + 1] == "/":
        return str(path[len(root) :])
    return str(path)

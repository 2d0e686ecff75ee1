"""The ASGI middleware around an app: one recorder per request or websocket connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchkeeper.http._recorder import SCOPE_KEY
from watchkeeper.http._request_recorder import RequestRecorder
from watchkeeper.http._websocket_recorder import WebSocketRecorder
from watchkeeper.logs._context import bind_request, unbind_request

if TYPE_CHECKING:
    from watchkeeper.http._asgi import ASGIApp, Receive, Scope, Send
    from watchkeeper.http._endpoints import Endpoints
    from watchkeeper.http._recorder import RecorderConfig


class Middleware:
    """Gives each request its ids, records requests and websockets, and serves the library's endpoints."""

    def __init__(
        self, app: ASGIApp, config: RecorderConfig, *, endpoints: Endpoints, lifespan: ASGIApp
    ) -> None:
        self._app = app
        self._config = config
        self._endpoints = endpoints
        self._endpoint_paths = endpoints.paths
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        recorder = RequestRecorder(self._config, scope, receive, send)
        token = bind_request(recorder.context)
        try:
            path = scope["path"] if not scope.get("root_path") else _path_below_root(scope)
            if path in self._endpoint_paths:
                recorder.is_probe = not self._config.probe_lines
                await self._send_own_response(path, scope, recorder)
            else:
                await self._app(scope, recorder.receive, recorder.send)
            if not recorder.recorded:
                await recorder.end()
        except Exception as error:  # noqa: BLE001 - any exception of an app gets a response and a log line
            await recorder.fail(error)
        except BaseException:
            recorder.cancel()
            raise
        finally:
            unbind_request(token)
            # Break the reference cycle so that refcounting frees both at once.
            scope.pop(SCOPE_KEY, None)

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        recorder = WebSocketRecorder(self._config, scope, receive, send)
        token = bind_request(recorder.context)
        try:
            await self._app(scope, recorder.receive, recorder.send)
            recorder.end()
        except Exception as error:
            if not recorder.fail(error):
                raise  # the server must close the connection
        except BaseException:
            recorder.cancel()
            raise
        finally:
            unbind_request(token)
            scope.pop(SCOPE_KEY, None)

    async def _send_own_response(self, path: str, scope: Scope, recorder: RequestRecorder) -> None:
        recorder.route = path
        response = await self._endpoints.handle(path, scope, recorder.context.request_id)
        await recorder.send(
            {"type": "http.response.start", "status": response.status, "headers": response.headers}
        )
        chunks = (b"",) if scope["method"] == "HEAD" else response.body
        for chunk in chunks[:-1]:
            await recorder.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await recorder.send({"type": "http.response.body", "body": chunks[-1], "more_body": False})


def _path_below_root(scope: Scope) -> str:
    path, root = scope["path"], scope["root_path"]
    if path.startswith(root) and path[len(root) : len(root) + 1] == "/":
        return str(path[len(root) :])
    return str(path)

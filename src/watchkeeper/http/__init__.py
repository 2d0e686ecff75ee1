"""The ASGI edge: the middleware around the app, and the library's own endpoints."""

from __future__ import annotations

from watchkeeper.http._asgi import ASGIApp, Message, Receive, Scope, Send
from watchkeeper.http._endpoints import Endpoints
from watchkeeper.http._errors import error_body
from watchkeeper.http._ids import read_ids
from watchkeeper.http._lifespan import Lifespan
from watchkeeper.http._local import is_local, is_loopback
from watchkeeper.http._middleware import Middleware, name_route, note_exception
from watchkeeper.http.routes._resolve import resolve_route

__all__ = [
    "ASGIApp",
    "Endpoints",
    "Lifespan",
    "Message",
    "Middleware",
    "Receive",
    "Scope",
    "Send",
    "error_body",
    "is_local",
    "is_loopback",
    "name_route",
    "note_exception",
    "read_ids",
    "resolve_route",
]

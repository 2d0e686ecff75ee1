"""The ASGI middleware around an app, and the library's own endpoints."""

from watchkeeper.http._errors import error_body
from watchkeeper.http._local import is_local
from watchkeeper.http._recorder import name_route, note_exception
from watchkeeper.http.routes._resolve import resolve_route

__all__ = ["error_body", "is_local", "name_route", "note_exception", "resolve_route"]

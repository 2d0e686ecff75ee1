"""Finds the route template of a dispatched request: each framework leaves another trace in the scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.http.routes._labels import CATCH_ALL, UNMATCHED
from watchkeeper.http.routes._litestar import is_mount_of_litestar, resolve_litestar
from watchkeeper.http.routes._quart import is_quart, quart_resolver
from watchkeeper.http.routes._starlette import mount_prefix, resolve_starlette

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.http._asgi import Scope


def resolve_route(scope: Scope) -> str:
    """Return the template of the route that served a request, with its mounts; `unmatched` without one.

    It knows FastAPI, Starlette and Litestar, each also mounted in another, and Quart mounted in FastAPI or
    Starlette.
    """
    starlette = "endpoint" in scope and "router" in scope
    if "route_handler" not in scope:
        if not starlette:
            return UNMATCHED
        route = resolve_starlette(scope)
        if route is None:
            return UNMATCHED
        return _below_mount(scope, route) if route.endswith(CATCH_ALL) else route
    litestar = resolve_litestar(scope)
    if litestar is None or not starlette:
        return litestar or UNMATCHED
    if is_mount_of_litestar(scope):
        inner = resolve_starlette(scope)
        return UNMATCHED if inner is None else litestar.removesuffix(CATCH_ALL) + inner
    outer = mount_prefix(scope)
    return UNMATCHED if outer is None else outer + litestar


def _below_mount(scope: Scope, route: str) -> str:
    app = scope["endpoint"]  # the mounted app
    if not is_quart(app):
        return route
    outer, inner = mount_prefix(scope), quart_resolver(app)(scope)
    return UNMATCHED if outer is None or inner == UNMATCHED else outer + inner


def resolver_for(app: Any) -> Callable[[Scope], str]:
    """Return the resolver of the app's framework."""
    return quart_resolver(app) if is_quart(app) else resolve_route

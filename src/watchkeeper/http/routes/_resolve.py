"""The route that an app chose for a request: its template, never a raw path.

Each framework leaves something else behind in the scope; there is one resolver for each, and none of them
imports the framework. What none of them knows is `unmatched`, until the app says more: see `name_route`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.http.routes._litestar import is_mount_of_litestar, resolve_litestar
from watchkeeper.http.routes._quart import is_quart, quart_resolver
from watchkeeper.http.routes._starlette import mount_prefix, resolve_starlette

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.http._asgi import Scope

UNMATCHED: Final = "unmatched"
MATCHED_NOTHING: Final = frozenset((404, 405))
"""Statuses with which a route does not mean that it matched; see `route_label`."""

CATCH_ALL: Final = "/{path}"
"""How the template of a mount ends that takes every path below it."""


def resolve_route(scope: Scope) -> str:
    """Return the template of the route that served a request, with its mounts; `unmatched` without one.

    FastAPI, Starlette and Litestar are known, each also below a mount of another, and Quart below a mount of
    FastAPI or Starlette; for Quart itself and others see `resolver_for` and `name_route`.

    Args:
        scope: Of a request or websocket that the app has dispatched.
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
    app = scope["endpoint"]  # what a mount leads to
    if not is_quart(app):
        return route
    outer, inner = mount_prefix(scope), quart_resolver(app)(scope)
    return UNMATCHED if outer is None or inner == UNMATCHED else outer + inner


def route_label(route: str, status: int) -> str:
    """Return what stands for a route in labels and lines where it may not have matched.

    Args:
        route: Template that the resolver found.
        status: Of the response: a 405, or a 404 of what takes every path, matched nothing.
    """
    return UNMATCHED if status == 405 or (status == 404 and route.endswith(CATCH_ALL)) else route


def resolver_for(app: Any) -> Callable[[Scope], str]:
    """Return the resolver that fits `app`; it is only asked for what it is."""
    return quart_resolver(app) if is_quart(app) else resolve_route

"""The route that an app chose for a request: its template, never a raw path.

Each framework leaves something else behind in the scope; there is one resolver for each, and none of them
imports the framework. What none of them knows is `unmatched`, until the app says more: see `name_route`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.http._routes_litestar import resolve_litestar
from watchkeeper.http._routes_starlette import resolve_starlette

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.http._asgi import Scope

UNMATCHED: Final = "unmatched"
CATCH_ALL: Final = "/{path}"
"""How the template of a mount ends that takes every path below it."""


def resolve_route(scope: Scope) -> str:
    """Return the template of the route that served a request, with its mounts; `unmatched` without one.

    FastAPI, Starlette and Litestar are known; for Quart and others see `resolver_for` and `name_route`.

    Args:
        scope: Of a request that the app has dispatched.
    """
    mount = resolve_litestar(scope) if "route_handler" in scope else ""
    if mount is None:
        return UNMATCHED
    if "endpoint" in scope and "router" in scope:
        inner = resolve_starlette(scope)
        return UNMATCHED if inner is None else mount.removesuffix(CATCH_ALL) + inner
    return mount or UNMATCHED


def route_label(resolve: Callable[[Scope], str], scope: Scope, status: int) -> str:
    """Return what stands for the request's route in labels and lines.

    Args:
        resolve: Knows the framework.
        scope: Of a request that the app has dispatched.
        status: Of its response: a 405, or a 404 of what takes every path, matched nothing.
    """
    if status == 405:
        return UNMATCHED
    route = resolve(scope)
    return UNMATCHED if status == 404 and route.endswith(CATCH_ALL) else route


def resolver_for(app: Any) -> Callable[[Scope], str]:
    """Return the resolver that fits `app`; it is only asked for what it is."""
    from watchkeeper.http._routes_quart import is_quart, quart_resolver  # noqa: PLC0415

    return quart_resolver(app) if is_quart(app) else resolve_route

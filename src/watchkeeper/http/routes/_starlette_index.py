"""Which route of a Starlette router an endpoint belongs to, without matching its path again.

Most endpoints stand in one route. That route is found at once; what stands in several, or below a host or a
mount, is left to who goes the way again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROUTERS: Final = 64

# By the router's id: the router, how many routes it had, and its routes by the id of their endpoint.
_known: dict[int, tuple[Any, int, dict[int, Any]]] = {}


def only_route(router: Any, endpoint: Any) -> Any | None:
    """Return the one route of `router` that leads to `endpoint`, or None.

    Args:
        router: That dispatched a request; routes may be added to it at any time.
        endpoint: Of the request.
    """
    routes = router.routes
    known = _known.get(id(router))
    if known is None or known[0] is not router or known[1] != len(routes):
        if len(_known) >= _ROUTERS:
            _known.clear()
        known = _known[id(router)] = router, len(routes), _by_endpoint(routes)
    route = known[2].get(id(endpoint))
    return route if route is not None and route.endpoint is endpoint else None


def expand(routes: Iterable[Any]) -> Iterator[Any]:
    """Give the routes, with FastAPI's included routers in their effective form."""
    for route in routes:
        if hasattr(route, "effective_route_contexts"):
            for context in route.effective_route_contexts():
                yield context.starlette_route or context
        else:
            yield route


def _by_endpoint(routes: Iterable[Any]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for route in _walk(routes):
        key = id(route.endpoint)
        found[key] = None if key in found or not hasattr(route, "path_format") else route
    return found


def _walk(routes: Iterable[Any]) -> Iterator[Any]:
    for route in expand(routes):
        if hasattr(route, "endpoint"):
            yield route
        elif not hasattr(route, "path_regex"):  # a Host: what is below it may be elsewhere too
            for below in _walk(getattr(route, "routes", None) or []):
                yield from (below, below)

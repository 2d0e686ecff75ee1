"""Finds the only route of a Starlette endpoint, so that most requests need no second matching of the path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROUTERS: Final = 64

# By id of the router: the router, its number of routes, and its routes by id of their endpoint.
_indexes: dict[int, tuple[Any, int, dict[int, Any]]] = {}


def only_route(router: Any, endpoint: Any) -> Any | None:
    """Return the only route of `router` with this endpoint, or None; routes may be added at any time."""
    routes = router.routes
    index = _indexes.get(id(router))
    if index is None or index[0] is not router or index[1] != len(routes):
        if len(_indexes) >= _ROUTERS:
            _indexes.clear()
        index = _indexes[id(router)] = router, len(routes), _by_endpoint(routes)
    route = index[2].get(id(endpoint))
    return route if route is not None and route.endpoint is endpoint else None


def expand(routes: Iterable[Any]) -> Iterator[Any]:
    """Yield the routes, with those of FastAPI's included routers in their effective form."""
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
        elif not hasattr(route, "path_regex"):  # a Host: twice, so that its routes are never the only one
            for below in _walk(getattr(route, "routes", None) or []):
                yield from (below, below)

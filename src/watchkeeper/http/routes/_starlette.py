"""Route templates of Starlette and FastAPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.http.routes._labels import CATCH_ALL
from watchkeeper.http.routes._starlette_index import expand, only_route

if TYPE_CHECKING:
    from collections.abc import Iterable

    from watchkeeper.http._asgi import Scope

_CACHED_PREFIXES: Final = 1024

_prefixes: dict[tuple[int, str], tuple[Any, str | None]] = {}


def resolve_starlette(scope: Scope) -> str | None:
    """Return the template with its mounts, or None if no route matched."""
    route = scope.get("route")
    if route is None or getattr(route, "endpoint", None) is not scope["endpoint"]:
        # Starlette sets no route, and leaves a mount in the scope if nothing below it matched.
        only = None if "app_root_path" in scope else only_route(scope["router"], scope["endpoint"])
        if only is None:
            return _match_again(scope)
        return str(only.path_format) if _accepts(only, scope.get("method")) else None
    methods = getattr(route, "methods", None)  # a websocket's route has none
    if methods and scope["method"] not in methods:
        return None  # with a 405 the scope has the route that does not allow the method
    if "fastapi" in scope:
        # FastAPI 0.165: an included router's prefix is not in the route.
        context = scope["fastapi"].get("effective_route_context")
        if context is not None and context.original_route is route:
            route = context
    if "app_root_path" not in scope:
        template: str = route.path_format
        return template
    prefix = mount_prefix(scope)
    # None if an app below the mount set its own root path.
    return _match_again(scope) if prefix is None else prefix + str(route.path_format)


def _match_again(scope: Scope) -> str | None:
    return _match(scope["router"].routes, _path_in_app(scope), scope.get("method"))


def mount_prefix(scope: Scope) -> str | None:
    """Return the template of the mounts above the route; `root_path` has their parameters' raw values."""
    router = scope["router"]
    root = scope["root_path"][len(scope.get("app_root_path", "")) :]
    key = (id(router), root)
    cached = _prefixes.get(key)
    if cached is not None and cached[0] is router:
        return cached[1]
    if len(_prefixes) >= _CACHED_PREFIXES:
        _prefixes.clear()  # the raw values are unbounded
    prefix = _find_mounts(router.routes, root) if root else ""
    _prefixes[key] = router, prefix
    return prefix


def _find_mounts(routes: Iterable[Any], root: str) -> str | None:
    """Return the template of the mounts whose paths make up `root`."""
    for route in expand(routes):
        below = getattr(route, "routes", None) or []
        if not hasattr(route, "path_regex"):  # a Host: it matches no part of the path
            prefix = _find_mounts(below, root)
            if prefix is not None:
                return prefix
            continue
        match = route.path_regex.match(root + "/")
        if match is None or not _is_mount(route):
            continue
        own = route.path_format.removesuffix(CATCH_ALL)
        rest = match["path"].rstrip("/")
        if not rest:
            return str(own)
        inner = _find_mounts(below, "/" + rest)
        if inner is not None:
            return str(own) + inner
    return None


def _match(routes: Iterable[Any], path: str, method: str | None) -> str | None:
    """Match a path as the router did; return the template with its mounts."""
    for route in expand(routes):
        if not hasattr(route, "path_regex"):
            found = _match(getattr(route, "routes", None) or [], path, method)
            if found is not None:
                return found
            continue
        match = route.path_regex.match(path)
        if match is None:
            continue
        if _is_mount(route):
            if not route.routes:
                return str(route.path_format)
            inner = _match(route.routes, "/" + match["path"], method)
            return None if inner is None else route.path_format.removesuffix(CATCH_ALL) + inner
        if _accepts(route, method):
            return str(route.path_format)
    return None


def _accepts(route: Any, method: str | None) -> bool:
    """Return whether a route accepts the method; a websocket's is None, and its routes have no methods."""
    methods = getattr(route, "methods", ())
    if methods is None:
        return method is not None  # the route accepts every method
    return method in methods if methods else method is None


def _is_mount(route: Any) -> bool:
    return not hasattr(route, "endpoint") and route.path_format.endswith(CATCH_ALL)


def _path_in_app(scope: Scope) -> str:
    root = scope.get("app_root_path", scope.get("root_path", ""))
    path = str(scope["path"])
    return path[len(root) :] if root and path.startswith(root + "/") else path

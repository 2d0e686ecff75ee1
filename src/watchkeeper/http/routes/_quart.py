"""Route templates of Quart, which leaves nothing in the scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.http.routes._labels import UNMATCHED

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.http._asgi import Scope


def is_quart(app: Any) -> bool:
    """Return whether `app` is a Quart app."""
    return hasattr(app, "url_map") and hasattr(app, "asgi_http_class")


def quart_resolver(app: Any) -> Callable[[Scope], str]:
    """Return a resolver that matches the path again in the app's URL map."""

    def resolve(scope: Scope) -> str:
        root, path = scope.get("root_path", ""), scope["path"]
        adapter = app.url_map.bind("localhost", script_name=root or "/")
        if root and path.startswith(root + "/"):
            path = path[len(root) :]
        try:
            # A websocket has no method, and has its own rules.
            method = scope.get("method")
            rule, _ = adapter.match(path, method or "GET", return_rule=True, websocket=method is None)
        except Exception:  # noqa: BLE001 - werkzeug raises for 404, 405 and redirects
            return UNMATCHED
        return str(rule.rule)

    return resolve

"""The route template of Quart, which leaves nothing in the scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.http._asgi import Scope


def is_quart(app: Any) -> bool:
    """Say whether `app` is a Quart app, without importing Quart."""
    return hasattr(app, "url_map") and hasattr(app, "asgi_http_class")


def quart_resolver(app: Any) -> Callable[[Scope], str]:
    """Return a resolver that asks the app's URL map again: Quart keeps its own answer to itself."""

    def resolve(scope: Scope) -> str:
        root, path = scope.get("root_path", ""), scope["path"]
        adapter = app.url_map.bind("localhost", script_name=root or "/")
        if root and path.startswith(root + "/"):
            path = path[len(root) :]
        try:
            # A websocket has no method, and its rules are apart from those of HTTP.
            method = scope.get("method")
            rule, _ = adapter.match(path, method or "GET", return_rule=True, websocket=method is None)
        except Exception:  # noqa: BLE001 - werkzeug says 404, 405 and redirects by exceptions
            return "unmatched"
        return str(rule.rule)

    return resolve

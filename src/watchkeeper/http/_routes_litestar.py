"""The route template of Litestar."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Scope


def resolve_litestar(scope: Scope) -> str | None:
    """Return the template of the handler, or of the mount with `/{path}` at its end.

    Args:
        scope: After dispatch, with `route_handler` in it; a 404 and a 405 of Litestar have none.
    """
    template = str(scope.get("path_template", ""))
    if template:
        return template
    return None

"""The route template of Litestar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Scope


def resolve_litestar(scope: Scope) -> str | None:
    """Return the template of the handler, or of the mount with `/{path}` at its end.

    Args:
        scope: After dispatch, with `route_handler` in it; a 404 and a 405 of Litestar have none.
    """
    template = scope.get("path_template")
    if template:
        return str(template)
    mount = _mount_path(scope, scope["route_handler"])
    return None if mount is None else mount.rstrip("/") + "/{path}"


def is_mount_of_litestar(scope: Scope) -> bool:
    """Say whether Litestar handed the request on to an app that is mounted in it."""
    return not scope.get("path_template")


def _mount_path(scope: Scope, handler: Any) -> str | None:
    """Return the path of a mount, which has no parameters: Litestar takes none there."""
    *layers, _ = handler.ownership_layers
    base = "".join("/" + layer.path.strip("/") for layer in layers if layer.path.strip("/"))
    mounts = [base + path for path in handler.paths]
    if len(mounts) == 1:
        return str(mounts[0])
    # The path in the scope is what is left below the mount; this is the whole one.
    path = (scope.get("raw_path") or b"").decode("latin-1").removeprefix(scope.get("root_path", "")) + "/"
    return next((mount for mount in sorted(mounts, reverse=True) if path.startswith(mount + "/")), None)

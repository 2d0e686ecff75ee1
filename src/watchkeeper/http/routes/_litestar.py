"""Route templates of Litestar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.http.routes._labels import CATCH_ALL

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Scope


def resolve_litestar(scope: Scope) -> str | None:
    """Return the template of the handler, or of the mount with `/{path}` at its end."""
    template = scope.get("path_template")
    if template:
        return str(template)
    mount = _mount_path(scope, scope["route_handler"])
    return None if mount is None else mount.rstrip("/") + CATCH_ALL


def is_mount_of_litestar(scope: Scope) -> bool:
    """Return whether Litestar passed the request to an app that is mounted in it."""
    return not scope.get("path_template")


def _mount_path(scope: Scope, handler: Any) -> str | None:
    """Return the path of a mount; Litestar allows no parameters in it."""
    *layers, _ = handler.ownership_layers
    base = "".join("/" + layer.path.strip("/") for layer in layers if layer.path.strip("/"))
    mounts = [base + path for path in handler.paths]
    if len(mounts) == 1:
        return str(mounts[0])
    # scope["path"] is the remainder below the mount; raw_path is the whole path.
    path = (scope.get("raw_path") or b"").decode("latin-1").removeprefix(scope.get("root_path", "")) + "/"
    return next((mount for mount in sorted(mounts, reverse=True) if path.startswith(mount + "/")), None)

"""The service as an ASGI app: routes, limits and error responses, with the keeper around them.

`create` is the factory for other servers (`uvicorn --factory realestate.app:create`). It reads the
environment and generates no secrets.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin

import realestate
from realestate import listings, pairing, tools, webhooks
from realestate.errors import answer_error, is_expected
from realestate.limits import BodyLimits
from realestate.monitoring import Backend, build
from realestate.requests import StrictRequest
from watchkeeper.http import note_exception

if TYPE_CHECKING:
    from litestar import Response
    from litestar.types import HTTPScope, WebSocketScope

    from realestate.asgi import ASGIApp, Message, Receive, Scope, Send

ROUTES: Final = (
    webhooks.receive_webhook,
    tools.call_tool,
    pairing.request_pairing,
    pairing.confirm_pairing,
    listings.create_listing,
    listings.get_listing,
    listings.search_listings,
)


def create() -> ASGIApp:
    """Return the service for any ASGI server, configured by the environment.

    Raises:
        ConfigurationError: A setting is not usable.
    """
    return create_app(build(os.environ))


def create_app(backend: Backend) -> ASGIApp:
    """Return the ASGI app of `backend`, wrapped by its keeper."""
    settings = backend.settings
    inner: Any = _create_litestar(backend)
    inner = BodyLimits(inner, limit=settings.body_limit, timeout=settings.body_timeout)
    inner = webhooks.FailureCounting(inner, settings.webhook_secrets, backend.metrics.webhook_failures)
    return backend.keeper.wrap(HeadAsGet(inner))


def _create_litestar(backend: Backend) -> Litestar:
    async def log_failure(error: Exception, scope: HTTPScope | WebSocketScope) -> None:
        if not is_expected(error):
            await note_exception(error, scope)

    return Litestar(
        ROUTES,
        request_class=StrictRequest,
        state=State({"backend": backend}),
        # The keeper logs, and BodyLimits limits the bodies.
        logging_config=None,
        request_max_body_size=None,
        after_exception=[log_failure],
        exception_handlers={Exception: answer_error},
        openapi_config=OpenAPIConfig(
            title="Real Estate backend",
            version=realestate.__version__,
            # Files only: Litestar's pages load scripts from other sites.
            render_plugins=[JsonRenderPlugin(), YamlRenderPlugin()],
            openapi_router=Router(
                "/schema", route_handlers=[], include_in_schema=False, after_request=_raise_not_found
            ),
        ),
    )


async def _raise_not_found(response: Response[Any]) -> Response[Any]:
    # Litestar returns a page for an unknown path below /schema; return our error body instead.
    if response.status_code == NotFoundException.status_code:
        raise NotFoundException
    return response


class HeadAsGet:
    """Handles HEAD like GET without the body (RFC 9110, 9.3.2); Litestar alone returns 405."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, a HEAD as GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            # Restore it before the response starts: servers read it to know which length to expect.
            scope["method"] = "HEAD"
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # In place: with a copy of the scope the keeper would not see the route.
        scope["method"] = "GET"
        await self._app(scope, receive, send_head)

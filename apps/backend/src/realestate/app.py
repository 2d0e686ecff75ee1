"""The service as an ASGI app: routes, limits and error answers, with the keeper around them.

`create_app` takes everything it needs; `create` is the factory for other servers
(`uvicorn --factory realestate.app:create`), which reads the environment and makes no secrets.
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
    """Return the watched ASGI app of `backend`.

    Args:
        backend: What `build` returned.
    """
    settings = backend.settings
    inner: Any = _create_litestar(backend)
    inner = BodyLimits(inner, limit=settings.body_limit, timeout=settings.body_timeout)
    inner = webhooks.FailureCounting(inner, settings.webhook_secrets, backend.metrics.webhook_failures)
    return backend.keeper.wrap(HeadAsGet(inner))


def _create_litestar(backend: Backend) -> Litestar:
    async def log_fault(error: Exception, scope: HTTPScope | WebSocketScope) -> None:
        if not is_expected(error):
            await note_exception(error, scope)

    return Litestar(
        ROUTES,
        request_class=StrictRequest,
        state=State({"backend": backend}),
        # The keeper writes the lines, BodyLimits bounds the bodies: one owner each.
        logging_config=None,
        request_max_body_size=None,
        after_exception=[log_fault],
        exception_handlers={Exception: answer_error},
        openapi_config=OpenAPIConfig(
            title="Real Estate backend",
            version=realestate.__version__,
            # Files only: the pages that Litestar offers load their scripts from elsewhere.
            render_plugins=[JsonRenderPlugin(), YamlRenderPlugin()],
            openapi_router=Router(
                "/schema", route_handlers=[], include_in_schema=False, after_request=_refuse_unknown
            ),
        ),
    )


async def _refuse_unknown(response: Response[Any]) -> Response[Any]:
    # Litestar answers an unknown path below /schema with a page of its own.
    if response.status_code == NotFoundException.status_code:
        raise NotFoundException
    return response


class HeadAsGet:
    """Answers HEAD like GET without the body (RFC 9110, 9.3.2), which Litestar alone answers with 405.

    Args:
        app: The app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, as GET when it is HEAD."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            # Back before the answer starts: servers look at it to know what length to expect.
            scope["method"] = "HEAD"
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # In place: a copy would keep the route that is found from the keeper's eyes.
        scope["method"] = "GET"
        await self._app(scope, receive, send_head)

"""How many requests per second the whole backend answers with its database, bare and monitored."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from bench._figure import OURS, Figure
from bench._rounds import Effort, interleave
from bench._servers import CONNECTIONS, Server
from watchkeeper.http._lifespan import Lifespan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from watchkeeper import Watchkeeper

_PATH: Final = "/api/listings/search?type=house"
_BARE: Final = "the backend, bare"
_ROUND: Final = timedelta(seconds=2)


def measure(effort: Effort) -> Figure:
    """Measure a search of the listings, through the database."""
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(_server(factory))
            for name, factory in ((OURS, "watched"), (_BARE, "bare"))
        }
        rounds = interleave(servers, lambda name: servers[name].load(_ROUND).rate, effort.of(10, 2))
    return Figure(
        name="throughput",
        title=f"the whole backend, {CONNECTIONS} connections",
        unit="requests/s",
        rounds=rounds,
        more_is_better=True,
    )


def watched() -> Any:
    """Return the backend as it is served."""
    from realestate.app import create

    return create()


def bare() -> Any:
    """Return the backend with its database and retention, but without the middleware."""
    from realestate.app import create_app
    from realestate.monitoring import build

    backend = build(os.environ)
    keeper = cast("Watchkeeper", _WithoutMiddleware(backend.keeper))
    return create_app(dataclasses.replace(backend, keeper=keeper))


class _WithoutMiddleware:
    """A keeper that opens the database and runs retention, but does not monitor requests."""

    def __init__(self, keeper: Watchkeeper) -> None:
        self._keeper = keeper

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keeper, name)

    def wrap(self, app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """Return `app` with a lifespan that starts and stops the keeper."""
        lifespan = Lifespan(app, self._keeper.start, self._keeper.close)

        async def app_with_lifespan(scope: Any, receive: Any, send: Any) -> None:
            await (lifespan if scope["type"] == "lifespan" else app)(scope, receive, send)

        return app_with_lifespan


@contextlib.contextmanager
def _server(factory: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as state:
        # When we are root, PostgreSQL runs as another user, which needs access to the folder.
        Path(state).chmod(0o755)
        with Server.uvicorn(f"bench.throughput:{factory}", _PATH, {"WATCHKEEPER_STATE_DIR": state}) as server:
            yield server

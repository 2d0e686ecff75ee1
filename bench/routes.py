"""How the cost of a monitored request grows with the number of routes that were requested."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import uvloop

from bench import _apps
from bench._driver import check, make_scope, serve
from bench._figure import OURS, Figure, growth_of
from bench._rounds import Effort, interleave
from bench._workers import Worker, workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_BY_HAND: Final = "prometheus_client + structlog by hand"
_SLICE: Final = 96


def measure(effort: Effort) -> Figure:
    """Measure the overhead over a plain ASGI app that finds its route in constant time.

    A framework's own search would hide it: FastAPI and Starlette match routes one by one.
    """
    sizes = (1, 100, 1000) if effort.quick else (1, 10, 100, 1000, 10_000)
    cases = [(size, name) for size in sizes for name in (OURS, _BY_HAND)]
    requests = effort.of(1920, 480)
    with workers({case: Worker.of(watch, *case) for case in cases}) as started:
        found = interleave(cases, lambda case: float(started[case].ask(requests)), effort.of(12, 3))
    curve, rounds = growth_of("routes", found)
    return Figure(
        name="request-by-routes",
        title="all of it over a plain ASGI app, by routes",
        unit="µs CPU a request",
        rounds=rounds,
        curve=curve,
    )


def watch(routes: int, name: str) -> Callable[[int], float]:
    """Return a function that measures the overhead of monitoring, in µs per request, over some requests."""
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    bare = _Router(_apps.bare_asgi())
    watched = _by_hand(bare) if name == _BY_HAND else runner.run(_ours(bare))
    paths = [f"/api/v1/resources/{number}" for number in range(routes)]
    runner.run(check(watched))
    runner.run(serve(watched, [make_scope(path) for path in paths]))  # so that every route has its series

    def measure_overhead(requests: int) -> float:
        return runner.run(_overhead(bare, watched, paths, requests))

    return measure_overhead


class _Router:
    """Looks the route up in a dictionary, sets `scope['route']` and calls `app`."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._routes: dict[str, SimpleNamespace] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path not in self._routes:
            self._routes[path] = SimpleNamespace(path=f"{path}/{{id}}")
        scope["route"] = self._routes[path]
        await self._app(scope, receive, send)


async def _overhead(bare: Any, watched: Any, paths: list[str], requests: int) -> float:
    gc.collect()
    overhead = 0.0
    for start in range(0, requests, _SLICE):
        # Spread over the routes, so that with many routes hardly two requests are for the same one.
        chosen = [paths[number * 7919 % len(paths)] for number in range(start, start + _SLICE)]
        overhead -= await serve(bare, [make_scope(path) for path in chosen])
        overhead += await serve(watched, [make_scope(path) for path in chosen])
    return overhead / requests * 1e6


async def _ours(app: Any) -> Any:
    keeper = _apps.keeper()
    watched = keeper.wrap(app, resolve_route=lambda scope: str(scope["route"].path))
    await keeper.start()
    return watched


def _by_hand(app: Any) -> Any:
    from bench._handwritten import HandwrittenMiddleware

    return HandwrittenMiddleware(app)

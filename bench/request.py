"""What a monitored request costs more than a bare one, in process."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import uvloop

from bench import _apps
from bench._driver import BUSY_TURN, check, make_scope, serve
from bench._figure import OURS, Figure, share_of
from bench._rounds import Effort, interleave
from bench._workers import Worker, workers

if TYPE_CHECKING:
    from collections.abc import Callable

_SLICE: Final = 96  # requests at a time, bare and monitored in turn
_INSTRUMENTATOR: Final = "prometheus-fastapi-instrumentator"
_OPENTELEMETRY: Final = "OpenTelemetry metrics"
_IDLE: Final = f"{OURS}, one request per loop iteration"
_BARE: Final = "bare FastAPI, the whole request"


def measure(effort: Effort) -> Figure:
    """Measure all variants: ours with everything on, the peers with what they do."""
    requests = effort.of(960, 288)
    started = {name: Worker.of(watch, name) for name in VARIANTS}
    with workers(started):
        bare: list[float] = []

        def ask(name: str) -> float:
            without, overhead = started[name].ask(requests)
            if name == OURS:
                bare.append(without)
            return float(overhead)

        rounds = interleave(VARIANTS, ask, effort.of(30, 5))
    rounds[_BARE] = bare[1:]
    return Figure(
        name="request",
        title="all of it over a bare FastAPI app",
        unit="µs CPU a request",
        rounds=rounds,
        also=(_BARE, *(name for name in VARIANTS if name.startswith(OURS) and name != OURS)),
        goals=[
            *share_of(_INSTRUMENTATOR, rounds, 4),
            *share_of(_INSTRUMENTATOR, rounds, 8, stretch=True),
            *share_of(_OPENTELEMETRY, rounds, 14),
            *share_of(_OPENTELEMETRY, rounds, 25, stretch=True),
        ],
    )


def watch(variant: str) -> Callable[[int], tuple[float, float]]:
    """Return a function that serves a number of requests and returns two times per request in µs.

    The first is the bare app's, the second what monitoring adds. Both apps take turns in one process, so that
    both meet the same conditions.
    """
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)  # as uvicorn and our own server use
    make, put_around = VARIANTS[variant]
    bare, watched = make(), runner.run(put_around(make()))
    runner.run(check(bare))
    runner.run(check(watched))
    turn = 1 if variant == _IDLE else BUSY_TURN

    def measure_requests(requests: int) -> tuple[float, float]:
        return runner.run(_compare(bare, watched, requests, turn))

    return measure_requests


async def _compare(bare: Any, watched: Any, requests: int, turn: int) -> tuple[float, float]:
    gc.collect()
    without = with_it = 0.0
    for _ in range(requests // _SLICE):
        without += await serve(bare, [make_scope() for _ in range(_SLICE)], turn=turn)
        with_it += await serve(watched, [make_scope() for _ in range(_SLICE)], turn=turn)
    return without / requests * 1e6, (with_it - without) / requests * 1e6


async def _ours(app: Any, **settings: Any) -> Any:
    keeper = _apps.keeper(**settings)
    watched = keeper.wrap(app)
    await keeper.start()
    return watched


async def _by_hand(app: Any) -> Any:
    from bench._handwritten import HandwrittenMiddleware

    return HandwrittenMiddleware(app)


async def _instrumentator(app: Any) -> Any:
    from prometheus_fastapi_instrumentator import Instrumentator

    Instrumentator().instrument(app).expose(app)
    return app


async def _starlette_exporter(app: Any) -> Any:
    from starlette_exporter import PrometheusMiddleware, handle_metrics

    app.add_middleware(PrometheusMiddleware)
    app.add_route("/metrics", handle_metrics)
    return app


async def _opentelemetry(app: Any) -> Any:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.metrics import MeterProvider

    provider = MeterProvider(metric_readers=[PrometheusMetricReader()])
    FastAPIInstrumentor.instrument_app(app, meter_provider=provider)
    return app


VARIANTS: Final[dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]] = {
    OURS: (_apps.bare_fastapi, _ours),
    "prometheus_client + structlog by hand": (_apps.bare_fastapi, _by_hand),
    _INSTRUMENTATOR: (_apps.bare_fastapi, _instrumentator),
    "starlette_exporter": (_apps.bare_fastapi, _starlette_exporter),
    _OPENTELEMETRY: (_apps.bare_fastapi, _opentelemetry),
    _IDLE: (_apps.bare_fastapi, _ours),
    f"{OURS} without its line": (_apps.bare_fastapi, partial(_ours, request_lines=False)),
    f"{OURS} without its metrics": (_apps.bare_fastapi, partial(_ours, metrics=False)),
    f"{OURS} without both": (_apps.bare_fastapi, partial(_ours, request_lines=False, metrics=False)),
    f"{OURS} on Starlette": (_apps.bare_starlette, _ours),
    f"{OURS} on Litestar": (_apps.bare_litestar, _ours),
    f"{OURS} on plain ASGI": (_apps.bare_asgi, _ours),
}

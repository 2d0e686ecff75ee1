"""How much memory a process has after a million requests, half of them hostile."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import _apps
from bench._driver import HEADERS, make_scope, serve
from bench._figure import OURS, Figure, at_most
from bench._workers import Worker, workers
from bench.request import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench._rounds import Effort

_BARE: Final = "bare Starlette"
# A tenth of the requests is enough: they create a series for every method that a client invents.
_PEERS: Final = {
    "prometheus-fastapi-instrumentator, 1/10": "prometheus-fastapi-instrumentator",
    "starlette_exporter, 1/10": "starlette_exporter",
}
_SLICE: Final = 1000
_METHODS: Final = ("GET", "POST", "PROPFIND", "M-SEARCH", "\x00", "get", "X" * 300)


def measure(effort: Effort) -> Figure:
    """Measure resident memory after a tenth of the requests and after all of them."""
    requests = effort.of(1_000_000, 100_000)
    sizes = {OURS: requests, _BARE: requests, **dict.fromkeys(_PEERS, requests // 10)}
    started = {name: Worker.of(serve_many, _PEERS.get(name, name)) for name in sizes}
    with workers(started), ThreadPoolExecutor(max_workers=2) as pool:
        grown = pool.map(_growth, started.values(), sizes.values())
        rounds = {name: [value] for name, value in zip(started, grown, strict=True)}
    return Figure(
        name="memory",
        title=f"growth from {requests // 10:,} to {requests:,} requests, half of them hostile",
        unit="MB",
        rounds=rounds,
        also=(_BARE, *_PEERS),
        goals=at_most("≤ 2 MB", rounds, 2.0),
    )


def serve_many(name: str) -> Callable[[int], float]:
    """Return a function that serves a number of requests and returns the resident MB."""
    runner = asyncio.Runner()
    app = _apps.bare_starlette()
    if name != _BARE:
        app = runner.run(VARIANTS[name][1](app))
    dice = random.Random(7)  # noqa: S311 - the same requests in every run

    def serve_requests(requests: int) -> float:
        for _ in range(requests // _SLICE):
            runner.run(serve(app, [_one(number, dice) for number in range(_SLICE)]))
        gc.collect()
        return _resident()

    return serve_requests


def _growth(worker: Worker, requests: int) -> float:
    early = worker.ask(requests // 10)
    return float(worker.ask(requests - requests // 10) - early)


def _one(number: int, dice: random.Random) -> dict[str, Any]:
    """Return a normal request for odd numbers, else a scanner's, with new values in every part."""
    if number % 2:
        return make_scope()
    path = f"/{dice.getrandbits(64):x}/../{dice.choice(('wp-login.php', '%00', 'items/1e9'))}"
    if dice.random() < 0.2:
        path = f"/items/{dice.getrandbits(40)}"
    names = (b"host", b"user-agent", b"x-request-id", b"traceparent", b"x-forwarded-for", b"cookie")
    changed = [(name, b"%x" % dice.getrandbits(256)) for name in names]
    kept = itertools.filterfalse(lambda header: header[0] in names, HEADERS)
    return make_scope(
        path,
        method=dice.choice(_METHODS) if dice.random() < 0.5 else f"{dice.getrandbits(40):X}",
        query_string=b"q=%x&token=%x" % (dice.getrandbits(64), dice.getrandbits(128)),
        headers=[*kept, *changed],
    )


def _resident() -> float:
    """Return the exact resident MB: `statm` may lag by some hundred pages."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/smaps_rollup has no Rss")

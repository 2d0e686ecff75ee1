"""What a scrape costs, over all workers, before compression; and how that grows."""

from __future__ import annotations

from time import process_time
from typing import TYPE_CHECKING, Any, Final

from bench._figure import OURS, Curve, Figure, Goal, Spread, at_most, share_of
from bench._pairs import Effort, interleave
from bench._stores import MULTIPROCESS, Store, open_store, store_workers
from bench._workers import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Literal

    from bench._workers import Worker


_WORKERS: Final = 4
_ROUTES: Final = 1000
_FEW: Final = 10  # routes that have had a request since the last scrape, in the usual case
_USUAL: Final = f"{OURS}, {_FEW} routes changed"
_USUAL_PEER: Final = f"{MULTIPROCESS}, {_FEW} routes changed"


def measure(effort: Effort) -> Figure:
    """Measure a scrape after every series has changed, and one after few have."""
    with store_workers((OURS, MULTIPROCESS), serve_routes, _WORKERS) as started:
        _touch(started.values(), _ROUTES)
        _check({kind: workers[0].ask(["check", 0]) for kind, workers in started.items()})
        cases = {
            OURS: (started[OURS], _ROUTES),
            MULTIPROCESS: (started[MULTIPROCESS], _ROUTES),
            _USUAL: (started[OURS], _FEW),
            _USUAL_PEER: (started[MULTIPROCESS], _FEW),
        }
        rounds = interleave(cases, lambda name: _scrape_after(*cases[name]), effort.of(10, 3))
    return Figure(
        name="scrape",
        title=f"scrape, {_WORKERS} workers with {_ROUTES} routes each, all of them changed",
        unit="ms CPU",
        rounds=rounds,
        also=(_USUAL, _USUAL_PEER),
        goals=[
            *at_most("≤ 12 ms", rounds, 12.0),
            *share_of(MULTIPROCESS, rounds, 35),
            *share_of(MULTIPROCESS, rounds, 60, stretch=True),
        ],
    )


def measure_by_series(effort: Effort) -> Figure:
    """Measure how a scrape grows with the number of series, of a counter in two workers."""
    sizes = (1, 10, 100, 1000, 10_000) if effort.quick else (1, 10, 100, 1000, 10_000, 100_000)
    return _grow(
        "scrape-by-series",
        "scrape by series, 2 workers, all of them changed",
        "series",
        {size: _rounds_of(serve_series, 2, size, effort) for size in sizes},
        linear=True,
    )


def measure_by_routes(effort: Effort) -> Figure:
    """Measure how a scrape grows with the number of routes, twelve lines each."""
    sizes = (1, 10, 100, 1000) if effort.quick else (1, 10, 100, 1000, 10_000)
    return _grow(
        "scrape-by-routes",
        f"scrape by routes, {_WORKERS} workers, all of them changed",
        "routes",
        {size: _rounds_of(serve_routes, _WORKERS, size, effort) for size in sizes},
        linear=True,
    )


def measure_by_workers(effort: Effort) -> Figure:
    """Measure how a scrape grows with the number of workers."""
    sizes = (1, 2, 4) if effort.quick else (1, 2, 4, 8)
    return _grow(
        "scrape-by-workers",
        f"scrape by workers, {_ROUTES} routes, all of them changed",
        "workers",
        {size: _rounds_of(serve_routes, size, _ROUTES, effort) for size in sizes},
    )


def serve_routes(kind: str, folder: str, _size: int = 0) -> Callable[[Any], Any]:
    """Set a worker up that counts requests on many routes."""
    store = open_store(kind, folder)
    return _server(store, lambda number: store.record(f"/api/v1/resources/{number}/{{id}}", number % 6000))


def serve_series(kind: str, folder: str, size: int) -> Callable[[Any], Any]:
    """Set a worker up that counts on many series of one counter."""
    store = open_store(kind, folder, size)
    series = [store.counter(number) for number in range(size)]
    return _server(store, lambda number: series[number].inc())


def _server(store: Store, count: Callable[[int], None]) -> Callable[[Any], Any]:
    def answer(question: tuple[Literal["touch", "scrape", "check"], int]) -> Any:
        what, size = question
        if what == "touch":
            for number in range(size):
                count(number)
            return None
        if what == "check":
            return _look_at(store.render())
        start = process_time()
        store.render()
        return (process_time() - start) * 1e3

    return answer


def _look_at(body: bytes) -> list[float]:
    """Return how many lines of our two HTTP metrics there are, and how many requests they say."""
    lines = [
        line for line in body.splitlines() if line.startswith((b"http_requests_total", b"http_request_d"))
    ]
    counts = [line for line in lines if line.startswith(b"http_requests_total")]
    return [len(lines), sum(float(line.rsplit(b" ", 1)[1]) for line in counts)]


def _check(seen: dict[str, list[float]]) -> None:
    """See that what is compared is the same: every worker's requests on every route, in as many lines.

    Raises:
        WorkerError: It is not.
    """
    expected: list[float] = [_ROUTES * 12, _ROUTES * _WORKERS]
    if any(found != expected for found in seen.values()):
        raise WorkerError(f"a scrape should hold {expected} (lines, requests), they hold {seen}")


def _touch(all_workers: Iterable[list[Worker]], size: int) -> None:
    for workers in all_workers:
        for worker in workers:
            worker.ask(["touch", size])


def _scrape_after(workers: list[Worker], size: int) -> float:
    _touch([workers], size)
    return float(workers[0].ask(["scrape", 0]))


def _rounds_of(serve: Callable[..., Any], count: int, size: int, effort: Effort) -> dict[str, list[float]]:
    with store_workers((OURS, MULTIPROCESS), serve, count, size) as started:
        rounds = 2 if size >= 10_000 else effort.of(5, 2)
        return interleave(started, lambda kind: _scrape_after(started[kind], size), rounds)


def _linear(curve: Curve) -> list[Goal]:
    """Return the promise that at the far end ten times as many cost ten times as much, give or take."""
    before, last = (value or 0.0 for value in curve.lines[OURS][-2:])
    growth = last / before / (curve.x[-1] / curve.x[-2])
    text = f"≤ 1.3 times as much for each of {curve.x[-1]:,} {curve.label} as for each of {curve.x[-2]:,}"
    return [Goal(text=text, value=growth, at_most=1.3)]


def _grow(
    name: str, title: str, label: str, found: dict[int, dict[str, list[float]]], *, linear: bool = False
) -> Figure:
    lines = {
        kind: tuple(Spread.of(rounds[kind]).median for rounds in found.values())
        for kind in (OURS, MULTIPROCESS)
    }
    curve = Curve(label=label, x=tuple(found), lines=lines)
    return Figure(
        name=name,
        title=title,
        unit="ms CPU",
        rounds=found[max(found)],
        goals=_linear(curve) if linear else (),
        curve=curve,
    )

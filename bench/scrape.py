"""What a scrape of all workers costs, without compression."""

from __future__ import annotations

from time import process_time
from typing import TYPE_CHECKING, Any, Final

from bench._figure import OURS, Figure, at_most, share_of
from bench._rounds import Effort, interleave
from bench._stores import MULTIPROCESS, Store, open_store, store_workers
from bench._workers import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Literal

    from bench._workers import Worker

WORKERS: Final = 4
ROUTES: Final = 1000
_FEW: Final = 10  # routes that were requested since the last scrape, in the usual case
_USUAL: Final = f"{OURS}, {_FEW} routes changed"
_USUAL_PEER: Final = f"{MULTIPROCESS}, {_FEW} routes changed"


def measure(effort: Effort) -> Figure:
    """Measure a scrape after every series has changed, and one after few have."""
    with store_workers((OURS, MULTIPROCESS), serve_routes, WORKERS) as started:
        for workers in started.values():
            touch(workers, ROUTES)
        _check({kind: workers[0].ask(["check", 0]) for kind, workers in started.items()})
        cases = {
            OURS: (started[OURS], ROUTES),
            MULTIPROCESS: (started[MULTIPROCESS], ROUTES),
            _USUAL: (started[OURS], _FEW),
            _USUAL_PEER: (started[MULTIPROCESS], _FEW),
        }
        rounds = interleave(cases, lambda name: scrape_after(*cases[name]), effort.of(10, 3))
    return Figure(
        name="scrape",
        title=f"scrape, {WORKERS} workers with {ROUTES} routes each, all of them changed",
        unit="ms CPU",
        rounds=rounds,
        also=(_USUAL, _USUAL_PEER),
        goals=[
            *at_most("≤ 12 ms", rounds, 12.0),
            *share_of(MULTIPROCESS, rounds, 35),
            *share_of(MULTIPROCESS, rounds, 60, stretch=True),
        ],
    )


def serve_routes(kind: str, folder: str, _size: int = 0) -> Callable[[Any], Any]:
    """Set a worker up that counts requests to many routes."""
    store = open_store(kind, folder)
    return _server(store, lambda number: store.record(f"/api/v1/resources/{number}/{{id}}", number % 6000))


def serve_series(kind: str, folder: str, size: int) -> Callable[[Any], Any]:
    """Set a worker up that counts with many series of one counter."""
    store = open_store(kind, folder)
    series = [store.counter(number) for number in range(size)]
    return _server(store, lambda number: series[number].inc())


def touch(workers: Iterable[Worker], size: int) -> None:
    """Make each worker count with its first `size` routes or series."""
    for worker in workers:
        worker.ask(["touch", size])


def scrape_after(workers: Sequence[Worker], size: int) -> float:
    """Scrape one of the workers after `size` routes or series changed; return its CPU milliseconds."""
    touch(workers, size)
    return float(workers[0].ask(["scrape", 0]))


def _server(store: Store, count: Callable[[int], None]) -> Callable[[Any], Any]:
    def handle(question: tuple[Literal["touch", "scrape", "check"], int]) -> Any:
        what, size = question
        if what == "touch":
            for number in range(size):
                count(number)
            return None
        if what == "check":
            return _count_lines(store.render())
        start = process_time()
        store.render()
        return (process_time() - start) * 1e3

    return handle


def _count_lines(body: bytes) -> list[float]:
    """Return how many lines the two HTTP metrics have, and how many requests they count."""
    lines = [
        line for line in body.splitlines() if line.startswith((b"http_requests_total", b"http_request_d"))
    ]
    counts = [line for line in lines if line.startswith(b"http_requests_total")]
    return [len(lines), sum(float(line.rsplit(b" ", 1)[1]) for line in counts)]


def _check(seen: dict[str, list[float]]) -> None:
    """Raise WorkerError unless each store shows every worker's requests to every route, in as many lines."""
    expected: list[float] = [ROUTES * 12, ROUTES * WORKERS]
    if any(found != expected for found in seen.values()):
        raise WorkerError(f"a scrape should have {expected} (lines, requests), but they have {seen}")

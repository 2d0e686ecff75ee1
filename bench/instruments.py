"""What counting costs on a child that the caller keeps, while several workers share their metrics."""

from __future__ import annotations

import itertools
from time import process_time
from typing import TYPE_CHECKING, Final

from bench._figure import OURS, Figure, at_most
from bench._rounds import Effort, interleave
from bench._stores import BUCKETS, MULTIPROCESS, PLAIN, open_store, store_workers

if TYPE_CHECKING:
    from collections.abc import Callable

_WORKERS: Final = 4


def measure_inc(effort: Effort) -> Figure:
    """Measure a counter's `inc`."""
    rounds = _measure("inc", effort)
    return Figure(
        name="inc",
        title=f"counter.inc(), {_WORKERS} workers",
        unit="µs CPU a call",
        rounds=rounds,
        goals=at_most("≤ 0.16 µs", rounds, 0.16),
    )


def measure_observe(effort: Effort) -> Figure:
    """Measure a histogram's `observe`."""
    rounds = _measure("observe", effort)
    return Figure(
        name="observe",
        title=f"histogram.observe(), {len(BUCKETS)} buckets, {_WORKERS} workers",
        unit="µs CPU a call",
        rounds=rounds,
        goals=at_most("≤ 0.4 µs", rounds, 0.4),
    )


def _measure(call: str, effort: Effort) -> dict[str, list[float]]:
    calls = effort.of(50_000, 20_000)
    with store_workers((OURS, MULTIPROCESS, PLAIN), serve, _WORKERS, call) as started:
        # All workers of a store have counted; each round measures another one of them.
        turns = {kind: itertools.cycle(workers) for kind, workers in started.items()}
        return interleave(turns, lambda kind: float(next(turns[kind]).ask(calls)), effort.of(80, 8))


def serve(kind: str, folder: str, call: str) -> Callable[[int], float]:
    """Return a function that makes a number of calls and returns the µs per call, loop included."""
    store = open_store(kind, folder)
    counter, histogram = store.counter(1), store.histogram()
    counter.inc()
    histogram.observe(1.0)

    def inc(calls: int) -> float:
        start = process_time()
        for _ in itertools.repeat(None, calls):
            counter.inc()
        return (process_time() - start) / calls * 1e6

    def observe(calls: int) -> float:
        values = [float(number * 37 % 6000) for number in range(calls)]
        start = process_time()
        for value in values:
            histogram.observe(value)
        return (process_time() - start) / calls * 1e6

    return inc if call == "inc" else observe

"""How the cost of a scrape grows with the number of series, routes and workers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from bench._figure import OURS, Curve, Figure, Goal, Spread, growth_of
from bench._rounds import Effort, interleave
from bench._stores import MULTIPROCESS, store_workers
from bench.scrape import ROUTES, WORKERS, scrape_after, serve_routes, serve_series

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_Found = dict[tuple[int, str], list[float]]


def measure_by_series(effort: Effort) -> Figure:
    """Measure how a scrape grows with the number of series, of a counter in two workers."""
    sizes = (1, 10, 100, 1000, 10_000) if effort.quick else (1, 10, 100, 1000, 10_000, 100_000)
    found = _measure(serve_series, {size: (2, size) for size in sizes}, effort.of(5, 2))
    title = "scrape by series, 2 workers, all of them changed"
    return _figure("scrape-by-series", title, "series", found, linear=True)


def measure_by_routes(effort: Effort) -> Figure:
    """Measure how a scrape grows with the number of routes, twelve lines each."""
    sizes = (1, 10, 100, 1000) if effort.quick else (1, 10, 100, 1000, 10_000)
    found = _measure(serve_routes, {size: (WORKERS, size) for size in sizes}, effort.of(4, 2))
    title = f"scrape by routes, {WORKERS} workers, all of them changed"
    return _figure("scrape-by-routes", title, "routes", found, linear=True)


def measure_by_workers(effort: Effort) -> Figure:
    """Measure how a scrape grows with the number of workers."""
    counts = (1, 2, 4) if effort.quick else (1, 2, 4, 8)
    found = _measure(serve_routes, {count: (count, ROUTES) for count in counts}, effort.of(6, 2))
    title = f"scrape by workers, {ROUTES} routes, all of them changed"
    return _figure("scrape-by-workers", title, "workers", found, linear=False)


def _measure(serve: Callable[..., Any], steps: Mapping[int, tuple[int, int]], rounds: int) -> _Found:
    """Measure all sizes in each round, so that other load affects all points of a curve alike.

    Args:
        serve: Sets a worker up.
        steps: For each size the number of workers, and of series or routes in each.
        rounds: How many rounds.
    """
    with contextlib.ExitStack() as stack:
        started = {
            step: stack.enter_context(store_workers((OURS, MULTIPROCESS), serve, *counts))
            for step, counts in steps.items()
        }
        return interleave(
            [(step, kind) for step in steps for kind in (OURS, MULTIPROCESS)],
            lambda case: scrape_after(started[case[0]][case[1]], steps[case[0]][1]),
            rounds,
        )


def _figure(name: str, title: str, label: str, found: _Found, *, linear: bool) -> Figure:
    curve, rounds = growth_of(label, found)
    goals = _linear(curve, found) if linear else ()
    return Figure(name=name, title=title, unit="ms CPU", rounds=rounds, goals=goals, curve=curve)


def _linear(curve: Curve, found: _Found) -> Sequence[Goal]:
    """Return the goal that the cost is linear from the last size but one to the last."""
    fewer, more = curve.x[-2:]
    growth = Spread.of_ratios(found[more, OURS], found[fewer, OURS]).median / (more / fewer)
    text = f"≤ 1.3 times as much for each of {more:,} {curve.label} as for each of {fewer:,}"
    return [Goal(text=text, value=growth, at_most=1.3)]

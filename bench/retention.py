"""What pruning costs, compared with plain statements, and what it costs other transactions."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from bench._figure import OURS, Figure, Goal, Spread, growth_of
from bench._pruning import (
    DEFAULT_BUDGET,
    LIMITED,
    PLAIN,
    WITH_OTHER_WRITERS,
    WITHIN_BUDGET,
    Case,
    pruned_service,
)
from bench._workers import Worker, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench._pruning import PrunedService
    from bench._rounds import Effort

_IDLE: Final = "the same inserts while nothing is pruned"
# Where Debian and Ubuntu install it; the embedded server is newer.
_DEBIANS: Final = Path("/usr/lib/postgresql/15/bin")
_INSERT_EACH_S: Final = 0.005
_WINDOW_S: Final = 0.5


def measure_random(effort: Effort, programs: Path | None = None) -> Figure:
    """Measure deleting most rows of a table, in random order."""
    case = Case(rows=effort.of(2_500_000, 250_000))
    longest: list[float] = []
    rounds = _measure(case, (PLAIN, OURS, WITH_OTHER_WRITERS, LIMITED), effort, programs, longest)
    goals = [_rate(rounds, PLAIN, 0.8), _rate(rounds, LIMITED, 8.0)]
    if longest:
        text = "≤ 100 ms for 99 of 100 of its transactions"
        goals.append(Goal(text=text, value=statistics.median(longest) * 1000, at_most=100.0))
    figure = _figure("prune-random", "80 % of 2.5 M rows, in random order", rounds, goals)
    return replace(figure, also=(WITH_OTHER_WRITERS,))


def measure_ordered(effort: Effort, programs: Path | None = None) -> Figure:
    """Measure deleting most rows of a table whose oldest rows come first."""
    case = Case(rows=effort.of(2_500_000, 250_000), ordered=True)
    rounds = _measure(case, (PLAIN, OURS), effort, programs)
    goals = [_rate(rounds, PLAIN, 0.75)]
    return _figure("prune-ordered", "80 % of 2.5 M rows, in time order", rounds, goals)


def measure_locked(effort: Effort, programs: Path | None = None) -> Figure:
    """Measure deleting most rows of a table while another transaction locks some everywhere."""
    case = Case(rows=effort.of(2_500_000, 250_000), locked=500)
    rounds = _measure(case, (PLAIN, OURS), effort, programs)
    title = "80 % of 2.5 M rows, each 500th locked"
    return _figure("prune-locked", title, rounds, [_rate(rounds, PLAIN, 0.45)])


def measure_few(effort: Effort, programs: Path | None = None) -> Figure:
    """Measure deleting few rows of a table."""
    case = Case(rows=effort.of(2_500_000, 250_000), old=1)
    rounds = _measure(case, (PLAIN, OURS), effort, programs)
    goals = [_rate(rounds, PLAIN, 1 / 1.3)]
    return _figure("prune-few", "0.1 % of 2.5 M rows, by the index of their age", rounds, goals)


def on_15(measure: Callable[[Effort, Path | None], Figure]) -> Callable[[Effort], Figure]:
    """Return the same measurement on Debian's PostgreSQL 15."""

    def measured(effort: Effort) -> Figure:
        if not _DEBIANS.is_dir():
            raise FileNotFoundError("there is no PostgreSQL 15 here: apt install postgresql-15")
        figure = measure(effort, _DEBIANS)
        return replace(figure, name=f"{figure.name}-15", title=f"{figure.title}, on PostgreSQL 15")

    return measured


def measure_others(effort: Effort) -> Figure:
    """Measure inserts into a table while it is pruned within the default budget, and while it is idle."""
    case = Case(rows=effort.of(1_000_000, 500_000))
    rounds: dict[str, list[float]] = {OURS: [], _IDLE: []}
    with pruned_service() as service:
        service.fill(case)
        service.copy()  # the inserting process prepares its statement
        with workers({"inserts": Worker.of(insert_steadily, service.owner_url)}) as started:
            inserts, order = started["inserts"], [_IDLE, OURS]
            for _ in range(effort.of(6, 1)):
                service.copy()
                for name in order:
                    idle = name == _IDLE
                    took = _while_idle(inserts, effort) if idle else _while_pruned(inserts, service, case)
                    rounds[name].append(_p99(took))
                order.reverse()
    ratio = Spread.of_ratios(rounds[OURS], rounds[_IDLE]).median
    return Figure(
        name="prune-others",
        title="99th percentile of an insert into a table that is pruned",
        unit="ms",
        rounds=rounds,
        goals=[Goal(text="≤ 1.5 times that of an idle table", value=ratio, at_most=1.5)],
    )


def measure_by_rows(effort: Effort) -> Figure:
    """Measure how many rows are deleted per second, and the process's memory, as tables grow."""
    sizes = (100_000, 316_000, 1_000_000, 3_160_000, 10_000_000, 31_600_000)
    found: dict[tuple[int, str], list[float]] = {}
    held: list[float] = []
    with pruned_service() as service:
        for rows in sizes[: effort.of(len(sizes), 2)]:
            case = Case(rows=rows)
            for name in (OURS, WITHIN_BUDGET):
                service.make(case)
                found[rows, name] = [case.expected / service.prune(case, name)]
            held.append(_resident_mb())
    curve, rounds = growth_of("rows in the table", found)
    text = "≤ 2 MB more in the process after the largest table than after the smallest"
    return Figure(
        name="prune-by-rows",
        title="80 % of a table, in random order, unthrottled",
        unit="rows/s",
        rounds=rounds,
        also=(WITHIN_BUDGET,),
        goals=[Goal(text=text, value=held[-1] - held[0], at_most=2.0)],
        curve=curve,
        more_is_better=True,
    )


def insert_steadily(url: str) -> Callable[[float], list[float]]:
    """Return a function that inserts a row every 5 ms for some seconds and returns the ms of each."""
    conn = psycopg.connect(url, autocommit=True)
    ids = iter(range(1_000_000_000, 2_000_000_000))

    def insert_for(seconds: float) -> list[float]:
        took: list[float] = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            conn.execute("INSERT INTO events VALUES (%s, 'others', 'x', now())", [next(ids)])
            took.append((time.perf_counter() - began) * 1000)
            time.sleep(max(began + _INSERT_EACH_S - time.perf_counter(), 0.0))
        return took

    return insert_for


def _while_idle(inserts: Worker, effort: Effort) -> list[float]:
    return [took for _ in range(effort.of(8, 2)) for took in inserts.ask(_WINDOW_S)]


def _while_pruned(inserts: Worker, service: PrunedService, case: Case) -> list[float]:
    took: list[float] = []
    with ThreadPoolExecutor(max_workers=1) as pool:
        pruning = pool.submit(service.run, DEFAULT_BUDGET, case.expected)
        while True:
            window = inserts.ask(_WINDOW_S)
            if pruning.done() and took:  # the run ended within this window
                break
            took += window
        pruning.result()
    return took


def _measure(
    case: Case,
    names: Sequence[str],
    effort: Effort,
    programs: Path | None,
    longest: list[float] | None = None,
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in names}
    order = list(names)
    with pruned_service(programs) as service:
        service.fill(case)
        service.copy()
        service.prune(case, PLAIN)  # discarded: it creates the server's WAL files, which are then reused
        for _ in range(effort.of(3, 1)):
            for name in order:
                service.copy()
                found[name].append(service.prune(case, name))
                if name == OURS and longest is not None:
                    longest.append(_p99(service.transactions))
            order.reverse()
    return found


def _figure(name: str, title: str, rounds: Mapping[str, Sequence[float]], goals: Sequence[Goal]) -> Figure:
    return Figure(name=name, title=title, unit="s", rounds=rounds, goals=goals)


def _rate(rounds: Mapping[str, Sequence[float]], peer: str, share: float) -> Goal:
    """Return the goal that ours deletes at least `share` times as many rows per second."""
    value = Spread.of_ratios(rounds[OURS], rounds[peer]).median
    return Goal(text=f"≤ {1 / share:.3g} times {peer}", value=value, at_most=1.0 / share)


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def _resident_mb() -> float:
    fields = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return int(fields[fields.index("VmRSS:") + 1]) / 1024

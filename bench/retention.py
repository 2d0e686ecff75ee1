"""What pruning costs beside the plain statements that people write for it, on the embedded server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psycopg

from bench._figure import OURS, Figure, Goal, Spread
from bench._pairs import Effort, interleave
from bench._workers import WorkerError
from watchkeeper import Policy, Settings, Watchkeeper
from watchkeeper.retention import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_PLAIN: Final = "one plain DELETE"
_LIMITED: Final = "DELETE of 10,000 rows by ctid, again and again"
_OLD: Final = "t.received_at < now() - interval '30 days'"
_POLICY: Final = Policy(table="events", age_column="received_at", keep=timedelta(days=30))
_FLAT_OUT: Final = Limits(share=1.0, budget=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    """A table to prune.

    Args:
        rows: How many it has.
        old: How many of them, in parts of a thousand, are older than the horizon.
        order: How they lie in the table: an ORDER BY.
        locked: Of how many rows one is locked by somebody else; none where it is 0.
    """

    rows: int
    old: int
    order: str
    locked: int = 0


def measure_random(effort: Effort) -> Figure:
    """Measure a table of which most rows go, lying about at random."""
    case = _Case(rows=effort.of(2_500_000, 250_000), old=800, order="random()")
    rounds = _measure(case, (OURS, _PLAIN, _LIMITED), effort)
    goals = [_rate(rounds, _PLAIN, 0.8), _rate(rounds, _LIMITED, 8.0)]
    return _figure("prune-random", "80 % of 2.5 M rows, in random order", rounds, goals)


def measure_ordered(effort: Effort) -> Figure:
    """Measure a table of which most rows go, the oldest first."""
    case = _Case(rows=effort.of(2_500_000, 250_000), old=800, order="received_at")
    rounds = _measure(case, (OURS, _PLAIN), effort)
    return _figure(
        "prune-ordered", "80 % of 2.5 M rows, in time order", rounds, [_rate(rounds, _PLAIN, 0.75)]
    )


def measure_locked(effort: Effort) -> Figure:
    """Measure a table of which most rows go, while others have rows of it locked everywhere."""
    case = _Case(rows=effort.of(2_500_000, 250_000), old=800, order="random()", locked=500)
    rounds = _measure(case, (OURS, _PLAIN), effort)
    title = "80 % of 2.5 M rows, each 500th of them locked by somebody else"
    return _figure("prune-locked", title, rounds, [_rate(rounds, _PLAIN, 0.45)])


def measure_few(effort: Effort) -> Figure:
    """Measure a table of which hardly anything goes."""
    case = _Case(rows=effort.of(2_500_000, 250_000), old=1, order="random()")
    rounds = _measure(case, (OURS, _PLAIN), effort)
    goals = [_rate(rounds, _PLAIN, 1 / 1.3)]
    return _figure("prune-few", "0.1 % of 2.5 M rows, by the index of their age", rounds, goals)


def _figure(name: str, title: str, rounds: Mapping[str, Sequence[float]], goals: Sequence[Goal]) -> Figure:
    return Figure(name=name, title=title, unit="s", rounds=rounds, goals=goals)


def _rate(rounds: Mapping[str, Sequence[float]], peer: str, share: float) -> Goal:
    """Return the promise that ours deletes at least `share` times as many rows a second."""
    value = Spread.of_ratios(rounds[OURS], rounds[peer]).median
    return Goal(text=f"≤ {1 / share:.3g} times {peer}", value=value, at_most=1.0 / share)


def _measure(case: _Case, names: Sequence[str], effort: Effort) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory(prefix="bench-retention-") as folder, _Bench(Path(folder)) as bench:
        bench.fill(case)
        return interleave(names, lambda name: bench.prune(case, name), effort.of(2, 1))


class _Bench:
    """A service with its embedded database, and the table.

    Args:
        folder: Where the data lives.
    """

    def __init__(self, folder: Path) -> None:
        # Whoever the server runs as has to get there.
        folder.chmod(0o755)
        settings = Settings(service="bench", state_dir=folder / "state")
        self._lines = os.open(os.devnull, os.O_WRONLY)
        self._keeper = Watchkeeper("bench", settings=settings, retention=[_POLICY], lines_to=self._lines)
        self._runner = asyncio.Runner()
        self._running = self._keeper.running()

    def __enter__(self) -> Self:
        self._runner.run(self._running.__aenter__())
        storage = self._keeper.storage
        if storage is None:
            raise WorkerError("a service with retention has a database")
        self._owner = psycopg.connect(storage.owner_url.reveal(), autocommit=True)
        self._other = psycopg.connect(storage.owner_url.reveal())
        return self

    def __exit__(self, *_exception: object) -> None:
        self._owner.close()
        self._other.close()
        self._runner.run(self._running.__aexit__(None, None, None))
        self._runner.close()
        os.close(self._lines)

    def fill(self, case: _Case) -> None:
        """Make the rows, of which each measurement has a copy."""
        self._owner.execute("DROP TABLE IF EXISTS template")
        self._owner.execute(
            f"""CREATE TABLE template AS
                SELECT g AS id, 'source-' || g % 10 AS source, repeat('x', 60) AS body,
                    now() - CASE WHEN g % 1000 < {case.old} THEN interval '40 days' ELSE interval '3 days' END
                    - ({case.rows} - g) * interval '1 ms' AS received_at
                FROM generate_series(1, {case.rows}) g
                ORDER BY {case.order}""".encode()  # noqa: S608 - our own words
        )

    def prune(self, case: _Case, name: str) -> float:
        """Copy the table, delete its old rows in one of the ways, and return the seconds that it took."""
        for statement in (
            "DROP TABLE IF EXISTS events",
            "CREATE TABLE events AS TABLE template",
            "CREATE INDEX ON events (received_at)",
            "ALTER TABLE events ADD PRIMARY KEY (id)",
            "GRANT SELECT, UPDATE, DELETE ON events TO bench",
            "VACUUM (ANALYZE) events",
        ):
            self._owner.execute(statement.encode())
        expected = case.rows * case.old // 1000
        if name != OURS:
            return _timed(self._plainly if name == _PLAIN else self._limited, expected)
        with self._locks(case) as let_go:
            return _timed(lambda: self._ours(expected, let_go), expected)

    @contextlib.contextmanager
    def _locks(self, case: _Case) -> Iterator[Callable[[], None]]:
        if case.locked:
            self._other.execute(f"SELECT FROM events WHERE id % {case.locked} = 0 FOR UPDATE".encode())
        yield self._other.rollback
        self._other.rollback()

    def _ours(self, expected: int, let_go: Callable[[], None]) -> int:
        gone = 0

        def progress(_table: str, rows: int) -> None:
            nonlocal gone
            gone += rows
            if gone >= expected * 0.99:  # else it would come back for the others, and wait
                let_go()

        (result,) = self._runner.run(self._keeper.retention.run_now(None, progress, limits=_FLAT_OUT))
        if result.status != "completed":
            raise WorkerError(f"the run {result.status}: {result.error}")
        return result.deleted

    def _plainly(self) -> int:
        return self._owner.execute(f"DELETE FROM events t WHERE {_OLD}".encode()).rowcount  # noqa: S608 - our own

    def _limited(self) -> int:
        query = f"SELECT ctid FROM events t WHERE {_OLD} ORDER BY received_at LIMIT 10000"  # noqa: S608 - our own
        gone = 0
        while rows := self._owner.execute(f"DELETE FROM events WHERE ctid IN ({query})".encode()).rowcount:  # noqa: S608
            gone += rows
        return gone


def _timed(delete: Callable[[], int], expected: int) -> float:
    start = time.perf_counter()
    gone = delete()
    seconds = time.perf_counter() - start
    if gone != expected:
        raise WorkerError(f"{gone} rows went, {expected} are old")
    return seconds

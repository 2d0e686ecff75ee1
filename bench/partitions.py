"""What dropping old partitions costs, compared with the plain DELETE, and how long other clients wait."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psycopg

from bench._figure import OURS, Figure, Goal, Spread
from bench._pruning import PLAIN, Case, pruned_service
from bench._rounds import Effort, interleave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Ten days past the horizon, three more recent.
_OLD_DAYS: Final = range(41, 51)
_NEW_DAYS: Final = range(3)


def measure(effort: Effort, programs: Path | None = None) -> Figure:
    """Measure a run that drops ten partitions by day while another connection inserts."""
    case = Case(rows=effort.of(1_000_000, 100_000), old=1000)
    waits: list[float] = []
    with pruned_service(programs) as service:

        def prune(name: str) -> float:
            create_table(service.owner_url, case.rows)
            if name != OURS:
                return service.prune(case, name)
            with inserting(service.owner_url) as longest:
                seconds = service.prune(case, name)
            waits.append(longest())
            return seconds

        rounds = interleave((OURS, PLAIN), prune, effort.of(3, 1))
    text = "≤ 0.15 s for the longest concurrent insert"
    return Figure(
        name="prune-partition",
        title="1 M rows in ten partitions by day",
        unit="s",
        rounds=rounds,
        goals=[
            Goal(text="≤ 1 s", value=Spread.of(rounds[OURS]).median, at_most=1.0),
            Goal(text=text, value=max(waits), at_most=0.15),
        ],
    )


def create_table(url: str, rows: int) -> None:
    """Create the table: `rows` in the old partitions, and a tenth of that in each new one."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS events")
        conn.execute(
            "CREATE TABLE events (id bigint, source text, body text, received_at timestamptz NOT NULL)"
            " PARTITION BY RANGE (received_at)"
        )
        conn.execute("CREATE INDEX ON events (received_at)")
        for days in (*_OLD_DAYS, *_NEW_DAYS):
            conn.execute(
                f"""DO $$BEGIN EXECUTE format(
                    'CREATE TABLE day_{days} PARTITION OF events FOR VALUES FROM (%L) TO (%L)',
                    date_trunc('day', now()) - interval '{days} days',
                    date_trunc('day', now()) - interval '{days - 1} days'); END$$""".encode()
            )
            conn.execute(
                f"""INSERT INTO events
                    SELECT g, 'source-' || g % 10, repeat('x', 60),
                        date_trunc('day', now()) - interval '{days} days' + g * interval '1 ms'
                    FROM generate_series(1, {rows // len(_OLD_DAYS)}) g""".encode()  # noqa: S608 - constants
            )
        conn.execute("GRANT SELECT, UPDATE, DELETE ON events TO bench")
        conn.execute("VACUUM (ANALYZE) events")


@contextmanager
def inserting(url: str) -> Iterator[Callable[[], float]]:
    """Insert rows until the block ends; yields a function that returns the longest insert in seconds."""
    ended = threading.Event()
    waits = [0.0]

    def insert() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            while not ended.is_set():
                began = time.perf_counter()
                conn.execute("INSERT INTO events VALUES (0, 'x', 'x', now())")
                waits.append(time.perf_counter() - began)

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        yield lambda: max(waits)
    finally:
        ended.set()
        thread.join()

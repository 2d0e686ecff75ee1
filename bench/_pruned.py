"""A service with a table to prune, on a server of its own, and the plain statements that prune it too."""

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

from bench._figure import OURS
from bench._workers import WorkerError
from watchkeeper import Policy, Settings, Watchkeeper
from watchkeeper.retention import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN: Final = "one plain DELETE"
KINDLY: Final = f"{OURS}, within its default budget"
BESIDE: Final = f"{OURS}, while others write elsewhere"
LIMITED: Final = "DELETE by ctid, 10,000 at a time"
FLAT_OUT: Final = Limits(share=1.0, budget=1.0)
KIND: Final = Limits(share=1.0)

_OLD: Final = "t.received_at < now() - interval '30 days'"
_POLICY: Final = Policy(table="events", age_column="received_at", keep=timedelta(days=30))


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A table to prune.

    Args:
        rows: How many it has.
        old: How many of them, in parts of a thousand, are older than the horizon.
        ordered: Whether the oldest come first in the table; otherwise they lie about at random.
        locked: Of how many rows one is locked by somebody else; none where it is 0.
    """

    rows: int
    old: int = 800
    ordered: bool = False
    locked: int = 0

    @property
    def expected(self) -> int:
        """How many rows are older than the horizon."""
        return self.rows * self.old // 1000

    @property
    def query(self) -> bytes:
        """The rows: whether one is old, and how old, follows from its rank, and the rank from its place."""
        # A prime that divides no power of ten makes each rank come once, and neighbours far apart.
        rank = "g - 1" if self.ordered else "g * 7919::bigint"
        return (
            "SELECT g AS id, 'source-' || g % 10 AS source, repeat('x', 60) AS body,"  # noqa: S608 - our own words
            f" now() - CASE WHEN rank < {self.expected} THEN interval '40 days' ELSE interval '3 days' END"
            f" - ({self.rows} - rank) * interval '1 ms' AS received_at"
            f" FROM (SELECT g, ({rank}) % {self.rows} AS rank FROM generate_series(1, {self.rows}) g) AS r"
        ).encode()


class PrunedHouse:
    """A service, its database, and the table.

    Args:
        folder: Where the data lives.
        programs: Folder of PostgreSQL's programs; default those that are embedded.
    """

    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        # Whoever the server runs as has to get there.
        folder.chmod(0o755)
        settings = Settings(service="bench", state_dir=folder / "state", postgres_bin=programs)
        self._lines = os.open(os.devnull, os.O_WRONLY)
        self._keeper = Watchkeeper("bench", settings=settings, retention=[_POLICY], lines_to=self._lines)
        self._runner = asyncio.Runner()
        self._running = self._keeper.running()
        self.transactions: list[float] = []
        """How long each transaction of ours took that deleted rows, in seconds."""

    def __enter__(self) -> Self:
        self._runner.run(self._running.__aenter__())
        self._owner = psycopg.connect(self.owner_url, autocommit=True)
        self._other = psycopg.connect(self.owner_url)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._owner.close()
        self._other.close()
        self._runner.run(self._running.__aexit__(None, None, None))
        self._runner.close()
        os.close(self._lines)

    @property
    def owner_url(self) -> str:
        """How the owner of the table connects."""
        service = self._keeper.database_service
        if service is None:
            raise WorkerError("a service with retention has a database")
        return service.owner_url.reveal()

    def fill(self, case: Case) -> None:
        """Make the rows, of which each measurement has a copy."""
        self._execute("DROP TABLE IF EXISTS template")
        self._owner.execute(b"CREATE TABLE template AS " + case.query)

    def copy(self) -> None:
        """Make the table anew, from what it was filled with."""
        self._execute("DROP TABLE IF EXISTS events", "CREATE TABLE events AS TABLE template")
        self._finish()

    def make(self, case: Case) -> None:
        """Make the table, of which there is no copy."""
        self._execute("DROP TABLE IF EXISTS events")
        self._owner.execute(b"CREATE TABLE events AS " + case.query)
        self._finish()

    def prune(self, case: Case, name: str) -> float:
        """Delete the table's old rows in one of the ways, and return the seconds that it took."""
        if name in (PLAIN, LIMITED):
            return _timed(self._plainly if name == PLAIN else self._limited, case.expected)
        limits = KIND if name == KINDLY else FLAT_OUT
        with self._locks(case) as let_go:
            near_end = self._write_elsewhere if name == BESIDE else let_go
            return _timed(lambda: self.run(limits, case.expected, near_end), case.expected)

    def run(self, limits: Limits, expected: int, near_end: Callable[[], object] = lambda: None) -> int:
        """Run the policy now.

        Args:
            limits: What it may take.
            expected: How many rows are old.
            near_end: Called when nearly all of them are gone.
        """
        gone, at = 0, time.perf_counter()
        self.transactions.clear()

        def progress(_table: str, rows: int) -> None:
            nonlocal gone, at
            now = time.perf_counter()
            self.transactions.append(now - at)
            at = now
            gone += rows
            if gone >= expected * 0.99:
                near_end()

        (result,) = self._runner.run(self._keeper.retention.run_now(None, progress, limits=limits))
        if result.status != "completed":
            raise WorkerError(f"the run {result.status}: {result.error}")
        return result.deleted

    def _write_elsewhere(self) -> None:
        self._execute("SELECT pg_current_xact_id()")  # to the run this is somebody who writes, anywhere

    def _finish(self) -> None:
        self._execute(
            "CREATE INDEX ON events (received_at)",
            "ALTER TABLE events ADD PRIMARY KEY (id)",
            "GRANT SELECT, UPDATE, DELETE ON events TO bench",
            "VACUUM (ANALYZE) events",
        )

    @contextlib.contextmanager
    def _locks(self, case: Case) -> Iterator[Callable[[], None]]:
        if case.locked:
            self._other.execute(f"SELECT FROM events WHERE id % {case.locked} = 0 FOR UPDATE".encode())
        yield self._other.rollback
        self._other.rollback()

    def _plainly(self) -> int:
        return self._owner.execute(f"DELETE FROM events t WHERE {_OLD}".encode()).rowcount  # noqa: S608 - our own

    def _limited(self) -> int:
        query = f"SELECT ctid FROM events t WHERE {_OLD} ORDER BY received_at LIMIT 10000"  # noqa: S608 - our own
        gone = 0
        while rows := self._owner.execute(f"DELETE FROM events WHERE ctid IN ({query})".encode()).rowcount:  # noqa: S608
            gone += rows
        return gone

    def _execute(self, *statements: str) -> None:
        for statement in statements:
            self._owner.execute(statement.encode())


@contextlib.contextmanager
def pruned_house(programs: Path | None = None) -> Iterator[PrunedHouse]:
    """Open a house in a temporary folder.

    Args:
        programs: Folder of PostgreSQL's programs; default those that are embedded.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-retention-") as folder,
        PrunedHouse(Path(folder), programs) as house,
    ):
        yield house


def _timed(delete: Callable[[], int], expected: int) -> float:
    start = time.perf_counter()
    gone = delete()
    seconds = time.perf_counter() - start
    if gone != expected:
        raise WorkerError(f"{gone} rows went, {expected} are old")
    return seconds

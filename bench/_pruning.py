"""A service with a table to prune, on its own server, and the plain statements that do the same."""

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
from watchkeeper.retention._model import RunObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN: Final = "one plain DELETE"
WITHIN_BUDGET: Final = f"{OURS}, within its default budget"
WITH_OTHER_WRITERS: Final = f"{OURS}, while others write elsewhere"
LIMITED: Final = "DELETE by ctid, 10,000 at a time"
UNTHROTTLED: Final = Limits(share=1.0, budget=1.0)
DEFAULT_BUDGET: Final = Limits(share=1.0)

_OLD: Final = "t.received_at < now() - interval '30 days'"
_POLICY: Final = Policy(table="events", age_column="received_at", keep=timedelta(days=30))


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A table to prune.

    Args:
        rows: How many it has.
        old: How many of 1000 rows are older than the horizon.
        ordered: Whether the oldest rows come first in the table; else their order is random.
        locked: Every how many rows one is locked by another transaction; 0 for none.
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
        """Selects the rows: the age of a row depends on its rank, and its rank on its position."""
        # 7919 is coprime to powers of ten: each rank occurs once, and neighbours are far apart.
        rank = "g - 1" if self.ordered else "g * 7919::bigint"
        return (
            "SELECT g AS id, 'source-' || g % 10 AS source, repeat('x', 60) AS body,"  # noqa: S608 - constants
            f" now() - CASE WHEN rank < {self.expected} THEN interval '40 days' ELSE interval '3 days' END"
            f" - ({self.rows} - rank) * interval '1 ms' AS received_at"
            f" FROM (SELECT g, ({rank}) % {self.rows} AS rank FROM generate_series(1, {self.rows}) g) AS r"
        ).encode()


class _OnDeleted(RunObserver):
    """Calls a function with the number of rows after each transaction that deleted some."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call = call

    def deleted(self, _table: str, rows: int) -> None:
        self._call(rows)


class PrunedService:
    """A service with its database, whose data is in `folder`, and the table.

    `programs` is the folder of PostgreSQL's programs; default: the embedded ones.
    """

    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        # When we are root, PostgreSQL runs as another user, which needs access to the folder.
        folder.chmod(0o755)
        settings = Settings(service="bench", state_dir=folder / "state", postgres_bin=programs)
        self._lines = os.open(os.devnull, os.O_WRONLY)
        self._keeper = Watchkeeper("bench", settings=settings, retention=[_POLICY], lines_to=self._lines)
        self._runner = asyncio.Runner()
        self._running = self._keeper.running()
        self.transactions: list[float] = []
        """Seconds of each of our transactions that deleted rows."""

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
        """The URL of the table's owner."""
        service = self._keeper.database_service
        if service is None:
            raise WorkerError("a service with retention has a database")
        return service.owner_url.reveal()

    def fill(self, case: Case) -> None:
        """Create the rows that each measurement copies."""
        self._execute("DROP TABLE IF EXISTS template")
        self._owner.execute(b"CREATE TABLE template AS " + case.query)

    def copy(self) -> None:
        """Create the table again, as a copy of the filled rows."""
        self._execute("DROP TABLE IF EXISTS events", "CREATE TABLE events AS TABLE template")
        self._finish()

    def make(self, case: Case) -> None:
        """Create the table without a copy of its rows."""
        self._execute("DROP TABLE IF EXISTS events")
        self._owner.execute(b"CREATE TABLE events AS " + case.query)
        self._finish()

    def prune(self, case: Case, name: str) -> float:
        """Delete the table's old rows in the way of this name, and return the seconds that it took."""
        if name in (PLAIN, LIMITED):
            return _timed(self._delete_plainly if name == PLAIN else self._delete_by_ctid, case.expected)
        limits = DEFAULT_BUDGET if name == WITHIN_BUDGET else UNTHROTTLED
        with self._locks(case) as unlock:
            near_end = self._write_to_other_table if name == WITH_OTHER_WRITERS else unlock
            return _timed(lambda: self.run(limits, case.expected, near_end), case.expected)

    def run(self, limits: Limits, expected: int, near_end: Callable[[], object] = lambda: None) -> int:
        """Run the policy within `limits`; call `near_end` when 99 % of the `expected` rows are deleted."""
        deleted, at = 0, time.perf_counter()
        self.transactions.clear()

        def progress(rows: int) -> None:
            nonlocal deleted, at
            now = time.perf_counter()
            self.transactions.append(now - at)
            at = now
            deleted += rows
            if deleted >= expected * 0.99:
                near_end()

        (result,) = self._runner.run(
            self._keeper.retention.run_now(limits=limits, observer=_OnDeleted(progress))
        )
        if result.status != "completed":
            raise WorkerError(f"the run {result.status}: {result.error}")
        return result.deleted

    def _write_to_other_table(self) -> None:
        self._execute("SELECT pg_current_xact_id()")  # to the run, another writer

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

    def _delete_plainly(self) -> int:
        return self._owner.execute(f"DELETE FROM events t WHERE {_OLD}".encode()).rowcount  # noqa: S608 - constants

    def _delete_by_ctid(self) -> int:
        query = f"SELECT ctid FROM events t WHERE {_OLD} ORDER BY received_at LIMIT 10000"  # noqa: S608 - constants
        deleted = 0
        while rows := self._owner.execute(f"DELETE FROM events WHERE ctid IN ({query})".encode()).rowcount:  # noqa: S608
            deleted += rows
        return deleted

    def _execute(self, *statements: str) -> None:
        for statement in statements:
            self._owner.execute(statement.encode())


@contextlib.contextmanager
def pruned_service(programs: Path | None = None) -> Iterator[PrunedService]:
    """Open a service in a temporary folder; see `PrunedService`."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-retention-") as folder,
        PrunedService(Path(folder), programs) as service,
    ):
        yield service


def _timed(delete: Callable[[], int], expected: int) -> float:
    start = time.perf_counter()
    deleted = delete()
    seconds = time.perf_counter() - start
    if deleted != expected:
        raise WorkerError(f"{deleted} rows were deleted, {expected} are old")
    return seconds

"""A database with tables to prune, and everything that retention needs around it."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg

from support.lines import LineFile
from watchkeeper.database import Database
from watchkeeper.logs import Logging
from watchkeeper.metrics import Registry
from watchkeeper.retention import LEASE, FolderArchive, Limits, Policy, Retention, RetentionMetrics, Schedule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest

    from support.postgres import DatabaseUrls
    from watchkeeper.retention import Archive, Calendar

EVENTS: Final = Policy(table="inbound_events", age_column="received_at", keep=timedelta(days=30))
FLAT_OUT: Final = Limits(share=1.0, budget=1.0)
SESSIONS: Final = Policy(table="chat_sessions", age_column="updated_at", keep=timedelta(days=90))


class DueAt:
    """A calendar with one due, so that no minute passes between two looks of a test."""

    def __init__(self, due: datetime) -> None:
        self.due = due

    def due_before(self, now: datetime) -> datetime:  # noqa: ARG002 - it is the interface
        """Return the due."""
        return self.due

    def due_after(self, now: datetime) -> datetime:
        """Return tomorrow."""
        return now + timedelta(days=1)


class House:
    """One database that retention keeps.

    Args:
        urls: The database.
        database: It, opened as the service's role.
        folder: A folder of its own.
        lines: Where the lines go.
    """

    def __init__(self, urls: DatabaseUrls, database: Database, folder: Path, lines: LineFile) -> None:
        self.urls = urls
        self.folder = folder
        self.database = database
        self.registry = Registry()
        self.calendar = DueAt(datetime.now(UTC) - timedelta(minutes=1))
        self._lines = lines
        self.reconnect()
        self._logging = Logging(service="house", env="test", sink=lines.sink)
        self._metrics: RetentionMetrics | None = None
        self._made: list[Retention] = []

    def retention(
        self,
        *policies: Policy,
        database: Database | None = None,
        calendar: Calendar | None = None,
        lease: timedelta = LEASE,
        limits: Limits = FLAT_OUT,
        archive: Archive | None = None,
        free_space: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> Retention:
        """Return a replica's retention; all of them count in one registry, declared with the first."""
        chosen = policies or (EVENTS, SESSIONS)
        self._metrics = self._metrics or RetentionMetrics(self.registry, chosen)
        retention = Retention(
            database or self.database,
            chosen,
            schedule=calendar or self.calendar,
            metrics=self._metrics,
            logging=self._logging,
            lease=lease,
            limits=limits,
            archive=archive or FolderArchive(self.folder / "archive"),
            free_space=free_space,
        )
        self._made.append(retention)
        return retention

    async def due(self, *policies: Policy, **options: Any) -> Retention:
        """Return a retention whose policies were declared long ago, so that the last due counts."""
        retention = self.retention(*policies, **options)
        await retention.register()
        self.sql("UPDATE retention_policies SET since = now() - interval '10 days'")
        return retention

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement as the owner, and return its rows."""
        cursor = self._owner.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def make_table(
        self, table: str = "inbound_events", age: str = "received_at", *, indexed: bool = True
    ) -> None:
        """Make a table like those of the backend, with the privileges that retention needs."""
        self.sql(f"CREATE TABLE {table} (id text PRIMARY KEY, {age} timestamptz)")
        if indexed:
            self.sql(f"CREATE INDEX ON {table} ({age})")
        self.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO keeper")

    def fill(self, table: str, days: float, rows: int, age: str = "received_at") -> None:
        """Add rows of one age, a microsecond apart."""
        self.sql(
            f"INSERT INTO {table} (id, {age})"  # noqa: S608 - the names are the tests' own
            " SELECT %s || g, now() - make_interval(secs => %s) - g * interval '1 us'"
            " FROM generate_series(1, %s) g",
            f"{days}-",
            days * 86400,
            rows,
        )

    def make_both(self) -> None:
        """Make the contract's two tables: three and two old rows, one and one young."""
        self.make_table()
        self.make_table("chat_sessions", "updated_at")
        self.fill("inbound_events", 31, 3)
        self.fill("inbound_events", 29, 1)
        self.fill("chat_sessions", 91, 2, "updated_at")
        self.fill("chat_sessions", 89, 1, "updated_at")

    def count(self, table: str) -> int:
        """Return how many rows there are."""
        return int(self.sql(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608 - the same

    def audited(self, table: str | None = None) -> list[dict[str, Any]]:
        """Return the payloads of the prune entries, the first first."""
        return [
            payload
            for (payload,) in self.sql(
                "SELECT payload FROM audit_log WHERE action = 'retention.prune'"
                " AND entity = coalesce(%s, entity) ORDER BY id",
                table,
            )
        ]

    def runs(self, table: str = "inbound_events") -> list[tuple[Any, ...]]:
        """Return attempt, state and rows of the runs of a table, the first first."""
        return self.sql(
            "SELECT attempt, state, rows_deleted FROM retention_runs WHERE table_name = %s ORDER BY id", table
        )

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of one type so far."""
        return [line for line in self._lines.read() if line["type"] == kind]

    def job(self) -> list[str]:
        """Return the statuses of the job's lines so far."""
        return [line["status"] for line in self.lines("job")]

    def restart(self) -> None:
        """Forget what was counted, as a new process would."""
        self.registry = Registry()
        self._metrics = None

    def reconnect(self) -> None:
        """Connect as the owner, for what a test looks at and changes."""
        self._owner = psycopg.connect(self.urls.owner_url, autocommit=True)

    async def rest(self) -> None:
        """End what replicas do in the background."""
        for retention in self._made:
            await retention.backlog.close()

    def close(self) -> None:
        """Let go of the database."""
        self._owner.close()

    def sample(self, name: str, **labels: str) -> float | None:
        """Return a metric's value."""
        return self.registry.sample(name, **labels)


@asynccontextmanager
async def open_house(urls: DatabaseUrls, folder: Path) -> AsyncIterator[House]:
    """Open a database for tests of retention.

    Args:
        urls: The database.
        folder: Where the lines are gathered.
    """
    database = Database(urls.url, owner_url=urls.owner_url)
    lines = LineFile(folder / "lines")
    await database.open()
    try:
        house = House(urls, database, folder, lines)
        # The backend's own, where its migrations are in the template, make way for plainer ones.
        house.sql("DROP TABLE IF EXISTS inbound_events, chat_sessions")
        yield house
        await house.rest()
        house.close()
    finally:
        await database.close()
        lines.close()


def look_up_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have rows found by the index of their ages, however many are old."""
    monkeypatch.setattr("watchkeeper.retention.run._sweep._FEW", 1.0)


def daily(timezone: str = "UTC") -> Schedule:
    """Return the contract's schedule."""
    return Schedule(timezone=timezone)


def close_as_another_would(house: House) -> None:
    """Close the open run, in one transaction with its entry."""
    with psycopg.connect(house.urls.owner_url) as conn:
        row = conn.execute(
            "SELECT id, rows_deleted FROM retention_runs WHERE state = 'running' FOR UPDATE"
        ).fetchone()
        assert row is not None
        entry = conn.execute(
            "INSERT INTO audit_log (actor_type, actor_id, action, entity, payload)"
            " VALUES ('system', 'other', 'retention.prune', 'inbound_events', %s) RETURNING id",
            [json.dumps({"deleted": row[1]})],
        ).fetchone()
        assert entry is not None
        conn.execute(
            "UPDATE retention_runs SET state = 'failed', epoch = epoch + 1, finished_at = now(),"
            " audit_id = %s WHERE id = %s",
            [entry[0], row[0]],
        )

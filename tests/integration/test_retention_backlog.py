"""The backlog: overdue rows measured on the tables, independent of what runs report."""

import time
from datetime import timedelta

import psycopg
import pytest

from support.postgres import PostgresServer
from support.retention import BOTH_SCANS, EVENTS, OPEN_RUN, SESSIONS, RetentionDB, hold_rows
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention import Policy
from watchkeeper.retention._metrics import WAITING_REASONS
from watchkeeper.retention._model import Backlog


@pytest.fixture(autouse=True)
def wait_for_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a scrape wait for its measurement."""
    monkeypatch.setattr("watchkeeper.retention.plan._backlog._SCRAPE_WAITS_S", 30.0)


def shown(db: RetentionDB, table: str = "inbound_events") -> tuple[float | None, float | None]:
    """Return the gauges of a table: rows, and the age of the oldest."""
    return (
        db.sample("retention_backlog_rows", table=table),
        db.sample("retention_oldest_eligible_timestamp_seconds", table=table),
    )


async def backlog(db: RetentionDB, policy: Policy = EVENTS) -> Backlog:
    """Measure a table now."""
    found = (await db.retention(policy).backlog.read())[policy.name]
    assert found is not None
    return found


@BOTH_SCANS
async def test_backlog_counts_eligible_rows_until_they_are_deleted(
    any_db: RetentionDB, *, indexed: bool
) -> None:
    """Held rows, young rows and rows without an age are not counted; an empty backlog has no oldest row."""
    db = any_db
    db.make_table(indexed=indexed, old=5)
    db.fill("inbound_events", 29, 2)
    db.sql("INSERT INTO inbound_events VALUES ('ageless', NULL)")
    retention = db.retention(EVENTS)
    assert db.sample("retention_keep_seconds", table="inbound_events") == 30 * 86400
    await hold_rows(retention, "id = '40-5'")  # the oldest
    await retention.refresh_metrics()
    ((second,),) = db.sql("SELECT received_at FROM inbound_events WHERE id = '40-4'")
    rows, oldest = shown(db)
    assert rows == 4
    assert oldest == pytest.approx(second.timestamp())
    assert (await backlog(db)).exact
    await retention.run_now()
    await db.retention(EVENTS).refresh_metrics()
    assert shown(db) == (0, None)


@BOTH_SCANS
async def test_large_backlog_is_estimated(db: RetentionDB, *, indexed: bool) -> None:
    """Rows are sampled from some blocks; with an index the oldest is exact."""
    db.make_table(indexed=indexed)
    db.sql(
        "INSERT INTO inbound_events"
        " SELECT g, now() - make_interval(days => 10 + (g %% 40)) FROM generate_series(1, %s) g",
        80_000,
    )
    found = await backlog(db)
    assert found.exact is False
    assert found.rows == pytest.approx(40_000, rel=0.15)  # days 30 to 49 of 10 to 49
    assert found.oldest is not None
    ((oldest,),) = db.sql("SELECT min(received_at) FROM inbound_events")
    assert found.oldest - oldest <= timedelta(0 if indexed else 1)


async def test_oldest_rows_of_an_append_only_table_are_found_without_an_index(db: RetentionDB) -> None:
    """Three rows at the start of a table, which a sample would usually miss."""
    db.make_table(indexed=False)
    db.fill("inbound_events", 50, 3)
    db.fill("inbound_events", 10, 80_000)
    ((oldest,),) = db.sql("SELECT min(received_at) FROM inbound_events")
    found = await backlog(db)
    assert (found.oldest, found.exact) == (oldest, False)
    assert found.rows >= 3


async def test_table_is_measured_once_a_minute(db: RetentionDB) -> None:
    """However often it is scraped; each process has its own minute."""
    db.make_table()
    retention = db.retention(EVENTS)
    await retention.refresh_metrics()
    db.fill("inbound_events", 40, 5)
    await retention.refresh_metrics()
    assert shown(db) == (0, None)
    await db.retention(EVENTS).refresh_metrics()
    assert shown(db)[0] == 5


def make_slow_holds(db: RetentionDB) -> None:
    """Make a table whose holds take a second per row."""
    db.sql("CREATE TYPE kind AS ENUM ('a', 'b')")
    db.sql(
        "CREATE FUNCTION slowly(kind, kind) RETURNS bool LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(1); RETURN $1::text = $2::text; END$$"
    )
    db.sql("CREATE OPERATOR = (LEFTARG = kind, RIGHTARG = kind, FUNCTION = slowly)")
    db.make_table()
    db.sql("ALTER TABLE inbound_events ADD kind kind DEFAULT 'a'")
    db.fill("inbound_events", 40, 50)
    db.sql("ANALYZE inbound_events")


async def test_slow_measurement_times_out_and_is_not_repeated_soon(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement has a timeout, the planner's estimate remains, and the table has a rest."""
    make_slow_holds(db)
    monkeypatch.setattr("watchkeeper.retention.plan._backlog._STATEMENT_TIMEOUT", timedelta(milliseconds=200))
    monkeypatch.setattr("watchkeeper.retention.plan._backlog.REFRESH_INTERVAL", timedelta(0))
    retention = db.retention(EVENTS)
    await hold_rows(retention, "kind = b")
    began = time.monotonic()
    await retention.refresh_metrics()
    assert 0.4 <= time.monotonic() - began < 30
    rows, oldest = shown(db)
    assert rows is not None
    assert rows > 0
    assert oldest is None
    db.sql("TRUNCATE inbound_events")
    await retention.refresh_metrics()
    assert shown(db) == (rows, None)
    await db.retention(EVENTS).refresh_metrics()
    assert shown(db) == (0, None)


async def test_scrape_does_not_wait_for_a_measurement(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A locked table shows no value, other metrics are served, and closing does not wait."""
    monkeypatch.setattr("watchkeeper.retention.plan._backlog._SCRAPE_WAITS_S", 0.05)
    db.make_table(old=5)
    retention = db.retention(EVENTS)
    with psycopg.connect(db.urls.owner_url) as other:
        other.execute("LOCK TABLE inbound_events")
        await retention.refresh_metrics()
        await retention.refresh_metrics()
        assert retention.backlog._refreshing is not None
        assert db.sample("retention_holds", table="inbound_events") == 0
        assert shown(db) == (None, None)
        await retention.backlog.close()


async def test_unknown_backlog_is_not_shown(db: RetentionDB) -> None:
    """A hold that cannot be applied removes the values of its table only."""
    db.make_contract_tables()
    db.sql("ALTER TABLE inbound_events ADD source text")
    retention = db.retention()
    await hold_rows(retention, "source = 'crm'")
    await retention.refresh_metrics()
    assert shown(db)[0] == 3
    db.sql("ALTER TABLE inbound_events DROP source")
    await db.retention().refresh_metrics()
    assert shown(db) == (None, None)
    assert shown(db, "chat_sessions")[0] == 2
    assert (await db.retention().backlog.read([EVENTS])) == {"inbound_events": None}
    db.sql("DROP TABLE chat_sessions")
    await db.retention().refresh_metrics()
    assert shown(db, "chat_sessions") == (None, None)


async def test_backlog_stays_while_the_database_is_down(
    private_db: RetentionDB, postgres_private: PostgresServer
) -> None:
    """Another metric reports the outage."""
    private_db.make_table(old=5)
    await private_db.retention(EVENTS).refresh_metrics()
    before = shown(private_db)
    assert before[0] == 5
    private_db.close()
    postgres_private.stop()
    retention = private_db.retention(EVENTS)
    await retention.backlog.refresh()
    assert shown(private_db) == before
    with pytest.raises(DatabaseUnavailableError, match="No connection"):
        await retention.backlog.read()


async def test_unexpected_error_is_reported_once(db: RetentionDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails the refresh that waits for it, and the next refresh starts again."""
    db.make_table()
    retention = db.retention(EVENTS)

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr("watchkeeper.retention.plan._backlog.read_backlog", broken)
    with pytest.raises(ZeroDivisionError, match="broken"):
        await retention.refresh_metrics()
    await retention.refresh_metrics()


async def test_pause_is_shown(db: RetentionDB) -> None:
    """In every process, whichever one paused the policy."""
    retention = db.retention()
    await retention.register()
    await retention.operator.pause("inbound_events", by="ann")
    await retention.refresh_metrics()
    paused = [db.sample("retention_paused", table=policy.name) for policy in (EVENTS, SESSIONS)]
    assert paused == [1, 0]
    await retention.operator.resume("inbound_events", by="ann")
    await retention.refresh_metrics()
    assert db.sample("retention_paused", table="inbound_events") == 0


def waits(db: RetentionDB) -> list[str]:
    """Return what a run of inbound_events is shown to wait for."""
    values = {
        reason: db.sample("retention_waiting", table="inbound_events", reason=reason)
        for reason in WAITING_REASONS
    }
    assert None not in values.values()
    return [reason for reason, value in values.items() if value]


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        ("replication lag: node2 is 12 s behind", "replication lag"),
        ("disk", "disk"),
        ("the moon: it is new", "other"),
    ],
)
async def test_waiting_reason_is_shown(db: RetentionDB, waiting: str, reason: str) -> None:
    """One series per reason, 0 from the start, and 1 only while the run is open."""
    retention = await db.overdue(EVENTS)
    assert waits(db) == []
    db.sql(OPEN_RUN)
    db.sql("UPDATE retention_runs SET waiting = %s", waiting)
    await retention.refresh_metrics()
    assert waits(db) == [reason]
    db.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s'")
    await retention.tick()
    await retention.refresh_metrics()
    assert waits(db) == []


@BOTH_SCANS
async def test_deleted_bytes_are_the_average_row_size(db: RetentionDB, *, indexed: bool) -> None:
    """With indexes and TOAST, measured when the run starts; ledger and counter agree."""
    db.make_table(indexed=indexed)
    db.sql("ALTER TABLE inbound_events ADD payload text")
    db.sql("ALTER TABLE inbound_events ALTER payload SET STORAGE EXTERNAL")
    db.fill("inbound_events", 40, 300)
    db.fill("inbound_events", 10, 100)
    db.sql("UPDATE inbound_events SET payload = repeat('x', 9000)")
    ((size,),) = db.sql("SELECT pg_total_relation_size('inbound_events')")
    assert size > 400 * 9000
    retention = await db.overdue(EVENTS)
    assert db.sample("retention_bytes_deleted_total", table="inbound_events") == 0
    (result,) = await retention.tick()
    assert result.deleted == 300
    assert result.bytes_deleted == pytest.approx(size * 0.75, rel=0.01)
    ((noted,),) = db.sql("SELECT bytes_deleted FROM retention_runs")
    assert noted == result.bytes_deleted
    assert db.sample("retention_bytes_deleted_total", table="inbound_events") == noted


async def test_bytes_of_an_interrupted_run_count_once(db: RetentionDB) -> None:
    """The process that closes the run counts what the ledger says; rows were counted when deleted."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    db.sql(
        "INSERT INTO retention_runs"
        " (table_name, trigger, due_at, attempt, lease_until, horizon, rows_deleted, bytes_deleted)"
        " VALUES ('inbound_events', 'schedule', %s, 1, now() - interval '1 s', now(), 7, 700)",
        db.schedule.time,
    )
    await retention.tick()
    await db.retention(EVENTS).tick()
    assert db.sample("retention_bytes_deleted_total", table="inbound_events") == 700
    assert db.sample("retention_rows_deleted_total", table="inbound_events") == 0

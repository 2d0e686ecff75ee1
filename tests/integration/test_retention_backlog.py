"""What is seen of rows that should be gone: measured on the tables, whatever the runs say of themselves."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from support.house import EVENTS, SESSIONS, House, open_house
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention import WAITING_REASONS, Backlog, Condition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.postgres import DatabaseUrls, PostgresServer
    from watchkeeper.retention import Policy

HOLD: dict[str, Any] = {"reason": "case 7", "owner": "legal"}
INDEXED = pytest.mark.parametrize("indexed", [True, False], ids=["by index", "by blocks"])


@pytest.fixture
async def house(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[House]:
    """A database to keep."""
    async with open_house(database_urls, tmp_path) as opened:
        yield opened


@pytest.fixture
async def any_house(any_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[House]:
    """A database to keep, on each supported server."""
    async with open_house(any_urls, tmp_path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a scrape wait for its look, so that a test need not."""
    monkeypatch.setattr("watchkeeper.retention.plan._backlog._SCRAPE_WAITS_S", 30.0)


def shown(house: House, table: str = "inbound_events") -> tuple[float | None, float | None]:
    """Return the gauges of a table: rows, and the age of the oldest."""
    return (
        house.sample("retention_backlog_rows", table=table),
        house.sample("retention_oldest_eligible_timestamp_seconds", table=table),
    )


async def backlog(house: House, policy: Policy = EVENTS) -> Backlog:
    """Look at a table now."""
    found = (await house.retention(policy).backlog.read())[policy.name]
    assert found is not None
    return found


@INDEXED
async def test_rows_that_are_due_are_seen_until_they_are_gone(any_house: House, *, indexed: bool) -> None:
    """Held, young and ageless ones are not among them; without any there is no oldest."""
    house = any_house
    house.make_table(indexed=indexed)
    house.fill("inbound_events", 40, 5)
    house.fill("inbound_events", 29, 2)
    house.sql("INSERT INTO inbound_events VALUES ('ageless', NULL)")
    retention = house.retention(EVENTS)
    assert house.sample("retention_keep_seconds", table="inbound_events") == 30 * 86400
    await retention.operator.hold("inbound_events", [Condition.parse("id = '40-5'")], **HOLD)  # the oldest
    await retention.refresh_metrics()
    ((second,),) = house.sql("SELECT received_at FROM inbound_events WHERE id = '40-4'")
    rows, oldest = shown(house)
    assert rows == 4
    assert oldest == pytest.approx(second.timestamp())
    assert (await backlog(house)).exact
    await retention.run_now()
    await house.retention(EVENTS).refresh_metrics()
    assert shown(house) == (0, None)


@INDEXED
async def test_many_rows_are_estimated(house: House, *, indexed: bool) -> None:
    """From some blocks of the table; by the index the oldest is still the oldest of all."""
    house.make_table(indexed=indexed)
    house.sql(
        "INSERT INTO inbound_events"
        " SELECT g, now() - make_interval(days => 10 + (g %% 40)) FROM generate_series(1, %s) g",
        80_000,
    )
    found = await backlog(house)
    assert found.exact is False
    assert found.rows == pytest.approx(40_000, rel=0.15)  # days 30 to 49 of 10 to 49
    assert found.oldest is not None
    ((oldest,),) = house.sql("SELECT min(received_at) FROM inbound_events")
    assert found.oldest - oldest <= timedelta(0 if indexed else 1)


async def test_the_oldest_rows_of_a_table_that_only_grows_are_seen_without_an_index(house: House) -> None:
    """Three rows at the beginning of a table, which a sample of it would miss most of the time."""
    house.make_table(indexed=False)
    house.fill("inbound_events", 50, 3)
    house.fill("inbound_events", 10, 80_000)
    ((oldest,),) = house.sql("SELECT min(received_at) FROM inbound_events")
    found = await backlog(house)
    assert (found.oldest, found.exact) == (oldest, False)
    assert found.rows >= 3


async def test_a_table_is_looked_at_once_a_minute(house: House) -> None:
    """However often it is scraped; another process has a minute of its own."""
    house.make_table()
    retention = house.retention(EVENTS)
    await retention.refresh_metrics()
    house.fill("inbound_events", 40, 5)
    await retention.refresh_metrics()
    assert shown(house) == (0, None)
    await house.retention(EVENTS).refresh_metrics()
    assert shown(house)[0] == 5


def make_slow_holds(house: House) -> None:
    """Make a table whose holds take a twentieth of a second for each row that they are asked about."""
    house.sql("CREATE TYPE kind AS ENUM ('a', 'b')")
    house.sql(
        "CREATE FUNCTION slowly(kind, kind) RETURNS bool LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(0.05); RETURN $1::text = $2::text; END$$"
    )
    house.sql("CREATE OPERATOR = (LEFTARG = kind, RIGHTARG = kind, FUNCTION = slowly)")
    house.make_table()
    house.sql("ALTER TABLE inbound_events ADD kind kind DEFAULT 'a'")
    house.fill("inbound_events", 40, 50)
    house.sql("ANALYZE inbound_events")


async def test_a_look_that_takes_too_long_ends_and_is_not_repeated_soon(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement ends at its time-out, the planner's estimate is left, and the table has its rest."""
    make_slow_holds(house)
    monkeypatch.setattr("watchkeeper.retention.plan._backlog._STATEMENT_TIMEOUT", timedelta(milliseconds=200))
    monkeypatch.setattr("watchkeeper.retention.plan._backlog.LOOK_EVERY", timedelta(0))
    retention = house.retention(EVENTS)
    await retention.operator.hold("inbound_events", [Condition.parse("kind = b")], **HOLD)
    began = time.monotonic()
    await retention.refresh_metrics()
    assert 0.4 <= time.monotonic() - began < 2
    rows, oldest = shown(house)
    assert rows is not None
    assert rows > 0
    assert oldest is None
    house.sql("TRUNCATE inbound_events")
    await retention.refresh_metrics()
    assert shown(house) == (rows, None)
    await house.retention(EVENTS).refresh_metrics()
    assert shown(house) == (0, None)


async def test_a_scrape_does_not_wait_for_a_look(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that a migration has locked shows nothing; all else is there at once, and ending is quick."""
    monkeypatch.setattr("watchkeeper.retention.plan._backlog._SCRAPE_WAITS_S", 0.05)
    house.make_table()
    house.fill("inbound_events", 40, 5)
    retention = house.retention(EVENTS)
    with psycopg.connect(house.urls.owner_url) as other:
        other.execute("LOCK TABLE inbound_events")
        began = time.monotonic()
        await retention.refresh_metrics()
        await retention.refresh_metrics()
        assert time.monotonic() - began < 0.4
        assert house.sample("retention_holds", table="inbound_events") == 0
        assert shown(house) == (None, None)
        began = time.monotonic()
        await retention.backlog.close()
        assert time.monotonic() - began < 0.4


async def test_what_is_not_known_is_not_shown(house: House) -> None:
    """A hold that cannot be applied takes its table's figures away, and no other's."""
    house.make_both()
    house.sql("ALTER TABLE inbound_events ADD source text")
    retention = house.retention()
    await retention.operator.hold("inbound_events", [Condition.parse("source = 'crm'")], **HOLD)
    await retention.refresh_metrics()
    assert shown(house)[0] == 3
    house.sql("ALTER TABLE inbound_events DROP source")
    await house.retention().refresh_metrics()
    assert shown(house) == (None, None)
    assert shown(house, "chat_sessions")[0] == 2
    assert (await house.retention().backlog.read([EVENTS])) == {"inbound_events": None}
    house.sql("DROP TABLE chat_sessions")
    await house.retention().refresh_metrics()
    assert shown(house, "chat_sessions") == (None, None)


async def test_while_the_database_is_away_the_figures_stay(
    postgres_private: PostgresServer, tmp_path: Path
) -> None:
    """As all figures of retention do: that it is away, another one tells."""
    urls = postgres_private.create_database("wk_template")
    async with open_house(urls, tmp_path) as house:
        house.make_table()
        house.fill("inbound_events", 40, 5)
        await house.retention(EVENTS).refresh_metrics()
        before = shown(house)
        assert before[0] == 5
        house.close()
        postgres_private.stop()
        retention = house.retention(EVENTS)
        await retention.backlog.look()
        assert shown(house) == before
        with pytest.raises(DatabaseUnavailableError, match="No connection"):
            await retention.backlog.read()


async def test_an_error_that_nobody_expected_is_told_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the refresh that waits for the look, which has a line of its own; the next one goes on."""
    house.make_table()
    retention = house.retention(EVENTS)

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr("watchkeeper.retention.plan._backlog.read_backlog", broken)
    with pytest.raises(ZeroDivisionError, match="broken"):
        await retention.refresh_metrics()
    await retention.refresh_metrics()


async def test_a_pause_is_shown(house: House) -> None:
    """Whoever paused it, and in whatever process."""
    retention = house.retention()
    await retention.register()
    house.sql(
        "UPDATE retention_policies SET paused_at = now(), paused_by = 'ann' WHERE table_name = %s",
        "inbound_events",
    )
    await retention.refresh_metrics()
    paused = [house.sample("retention_paused", table=policy.name) for policy in (EVENTS, SESSIONS)]
    assert paused == [1, 0]
    house.sql("UPDATE retention_policies SET paused_at = NULL, paused_by = NULL")
    await retention.refresh_metrics()
    assert house.sample("retention_paused", table="inbound_events") == 0


def waits(house: House) -> list[str]:
    """Return what a run of inbound_events is shown to wait for."""
    values = {
        reason: house.sample("retention_waiting", table="inbound_events", reason=reason)
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
async def test_what_a_run_waits_for_is_shown(house: House, waiting: str, reason: str) -> None:
    """By a word of a small set, each at 0 from the start, and while the run is open only."""
    retention = await house.due(EVENTS)
    assert waits(house) == []
    house.sql(
        "INSERT INTO retention_runs (table_name, trigger, due_at, attempt, lease_until, horizon, waiting)"
        " VALUES ('inbound_events', 'manual', now(), 1, now() + interval '1 minute', now(), %s)",
        waiting,
    )
    await retention.refresh_metrics()
    assert waits(house) == [reason]
    house.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s'")
    await retention.tick()
    await retention.refresh_metrics()
    assert waits(house) == []


@INDEXED
async def test_bytes_are_those_of_the_table_by_the_row(house: House, *, indexed: bool) -> None:
    """With indexes and TOAST, by the table's size when the run begins; ledger and counter say the same."""
    house.make_table(indexed=indexed)
    house.sql("ALTER TABLE inbound_events ADD payload text")
    house.sql("ALTER TABLE inbound_events ALTER payload SET STORAGE EXTERNAL")
    house.fill("inbound_events", 40, 300)
    house.fill("inbound_events", 10, 100)
    house.sql("UPDATE inbound_events SET payload = repeat('x', 9000)")
    ((size,),) = house.sql("SELECT pg_total_relation_size('inbound_events')")
    assert size > 400 * 9000
    retention = await house.due(EVENTS)
    assert house.sample("retention_bytes_deleted_total", table="inbound_events") == 0
    (result,) = await retention.tick()
    assert result.deleted == 300
    assert result.bytes_deleted == pytest.approx(size * 0.75, rel=0.01)
    ((noted,),) = house.sql("SELECT bytes_deleted FROM retention_runs")
    assert noted == result.bytes_deleted
    assert house.sample("retention_bytes_deleted_total", table="inbound_events") == noted


async def test_the_bytes_of_a_run_that_was_interrupted_count_once(house: House) -> None:
    """Who closes it counts what the ledger says; rows are counted where they went."""
    house.make_table()
    retention = await house.due(EVENTS)
    house.sql(
        "INSERT INTO retention_runs"
        " (table_name, trigger, due_at, attempt, lease_until, horizon, rows_deleted, bytes_deleted)"
        " VALUES ('inbound_events', 'schedule', %s, 1, now() - interval '1 s', now(), 7, 700)",
        house.calendar.due,
    )
    await retention.tick()
    await house.retention(EVENTS).tick()
    assert house.sample("retention_bytes_deleted_total", table="inbound_events") == 700
    assert house.sample("retention_rows_deleted_total", table="inbound_events") == 0

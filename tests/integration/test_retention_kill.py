"""No row is gone without its record, whatever dies when: replicas and servers are killed in the middle.

`KILLS=100` makes it 100 random instants a test instead of fifteen.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from psycopg import sql

from support.archive import ARCHIVED, archived, difference
from support.house import EVENTS, House, open_house
from support.postgres import OWNER, SERVICE
from support.replicas import Replicas, kill_in_a_run, wait_for
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention import RETRY_WAITS, Condition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from support.postgres import DatabaseUrls, PostgresServer
    from watchkeeper.retention import Retention

KILLS = int(os.environ.get("KILLS", "15"))
HELD = tuple(f"39-{number}" for number in range(1, 31))


@pytest.fixture
async def house(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[House]:
    """A database to keep."""
    async with open_house(database_urls, tmp_path) as opened:
        yield opened


@pytest.fixture
async def private_house(postgres_private: PostgresServer, tmp_path: Path) -> AsyncIterator[House]:
    """A database on a server that the test may kill: what is committed is in the hands of the system."""
    for role in (OWNER, SERVICE):
        postgres_private.execute(
            sql.SQL("ALTER ROLE {} SET synchronous_commit = on").format(sql.Identifier(role))
        )
    urls = postgres_private.create_database("wk_template")
    async with open_house(urls, tmp_path) as opened:
        yield opened


@pytest.fixture
def replicas(house: House, tmp_path: Path) -> Iterator[Replicas]:
    """Processes to kill."""
    started = Replicas(house, tmp_path / "replicas")
    yield started
    started.close()


@pytest.fixture
def archiving(house: House, tmp_path: Path) -> Iterator[Replicas]:
    """Processes to kill that archive what they delete."""
    started = Replicas(house, tmp_path / "replicas", "--archive", str(tmp_path / "archive"))
    yield started
    started.close()


def slow_down(house: House, seconds: float) -> None:
    """Have each DELETE take its time."""
    house.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END$$"
    )
    house.sql(
        "CREATE TRIGGER slow BEFORE DELETE ON inbound_events FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )


async def hold_some(house: House, retention: Retention) -> None:
    """Add old rows that a hold keeps."""
    house.fill("inbound_events", 39, len(HELD))
    kept = Condition(column="id", operator="in", values=HELD)
    await retention.operator.hold("inbound_events", [kept], reason="case 7", owner="legal")


def check_kept(house: House) -> None:
    """See that all that is young or held is there, and nothing else."""
    young = house.count("inbound_events WHERE id LIKE '29-%'")
    held = house.count("inbound_events WHERE id LIKE '39-%'")
    assert (young, held, house.count("inbound_events")) == (200, len(HELD), 200 + len(HELD))


async def test_rows_gone_are_rows_audited_after_kills_at_random_instants(
    house: House, replicas: Replicas
) -> None:
    """After many kills and a restart: gone is audited is counted, nothing young or held went."""
    house.make_table()
    house.fill("inbound_events", 29, 200)
    slow_down(house, 0.015)
    retention = await house.due(EVENTS)
    await hold_some(house, retention)
    rows, interrupted, chance = 0, 0, random.Random(20)
    for kill in range(KILLS):
        house.fill("inbound_events", 40 + kill, 6000)
        rows += 6000
        house.calendar.due += timedelta(milliseconds=1)
        interrupted += kill_in_a_run(house, replicas, chance.uniform(0.0, 0.12))
        house.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s' WHERE state = 'running'")
        if kill % 3:
            await retention.tick()
    house.calendar.due += timedelta(milliseconds=1)
    await retention.tick()
    assert interrupted > KILLS / 3  # otherwise they were killed before or after, and this shows nothing
    check_kept(house)
    assert sum(entry["deleted"] for entry in house.audited()) == rows
    assert house.sql("SELECT sum(rows_deleted) FROM retention_runs") == [(rows,)]
    assert house.count("retention_runs WHERE state = 'running' OR audit_id IS NULL") == 0
    assert len(house.audited()) == house.count("retention_runs")


async def test_a_run_whose_process_was_killed_is_gone_on_with_where_it_was(
    house: House, replicas: Replicas
) -> None:
    """Attempt for attempt the first pass begins later, and in the end every row is gone and counted once."""
    house.make_table()
    house.fill("inbound_events", 40, 30_000)
    house.fill("inbound_events", 29, 200)
    slow_down(house, 0.03)
    retention = await house.due(EVENTS)
    moved = "retention_runs WHERE state = 'running' AND cursor IS NOT NULL"
    for _ in RETRY_WAITS:
        replicas.start()
        wait_for(lambda: house.count(moved) == 1)
        replicas.kill()
        house.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s' WHERE state = 'running'")
        await retention.tick()
        house.sql("UPDATE retention_runs SET finished_at = finished_at - interval '1 hour'")
    assert [result.status for result in await retention.tick()] == ["completed"]
    cursors = [
        at for (at,) in house.sql("SELECT (cursor ->> 'at')::int FROM retention_runs ORDER BY attempt")
    ]
    assert 0 < cursors[0] < cursors[1] < cursors[2] < cursors[3]
    assert house.count("inbound_events") == 200
    assert [state for _, state, _ in house.runs()] == ["failed"] * 3 + ["completed"]
    assert house.sql("SELECT sum(rows_deleted) FROM retention_runs") == [(30_000,)]
    assert sum(entry["deleted"] for entry in house.audited()) == 30_000


async def test_rows_gone_are_rows_audited_after_kills_of_the_server(
    private_house: House, postgres_private: PostgresServer
) -> None:
    """The database crashes in the middle of runs and recovers: they go on, and each row is counted once."""
    house = private_house
    house.make_table()
    house.fill("inbound_events", 29, 200)
    slow_down(house, 0.015)
    retention = await house.due(EVENTS)
    await hold_some(house, retention)
    rows, in_the_middle, chance = 0, 0, random.Random(22)
    for kill in range(KILLS):
        house.fill("inbound_events", 60 + kill, 6000)
        rows += 6000
        house.calendar.due += timedelta(milliseconds=1)
        running = asyncio.create_task(retention.tick())
        await asyncio.sleep(chance.uniform(0.0, 0.08))
        in_the_middle += not running.done()
        house.close()
        postgres_private.stop(signal.SIGQUIT)  # at once and without a checkpoint, as a crash
        postgres_private.start()
        house.reconnect()
        try:
            await running
        except DatabaseUnavailableError:  # before there was a run
            await retention.tick()
        house.sql("VACUUM inbound_events")
    house.calendar.due += timedelta(milliseconds=1)
    await retention.tick()
    assert in_the_middle > KILLS / 3
    check_kept(house)
    assert sum(entry["deleted"] for entry in house.audited()) == rows
    assert house.sql("SELECT sum(rows_deleted) FROM retention_runs") == [(rows,)]
    assert house.count("retention_runs WHERE state = 'running' OR audit_id IS NULL") == 0


@pytest.mark.parametrize("count", [2, 5, 10])
async def test_processes_that_start_together_are_one_run(
    house: House, archiving: Replicas, count: int
) -> None:
    """One of them prunes, and archives each row once."""
    house.make_table()
    house.fill("inbound_events", 40, 4000)
    await house.due(ARCHIVED)
    for _ in range(count):
        archiving.start()
    archiving.wait()
    assert house.runs() == [(1, "completed", 4000)]
    assert [entry["deleted"] for entry in house.audited()] == [4000]
    assert len({row["id"] for row in archived(house)}) == len(archived(house)) == 4000


async def test_rows_gone_are_rows_archived_after_kills_at_random_instants(
    house: House, archiving: Replicas
) -> None:
    """After many kills and a restart: each row that is gone is in the archive once, and comes back."""
    house.make_table()
    house.fill("inbound_events", 29, 200)
    house.sql("CREATE TABLE before (LIKE inbound_events INCLUDING ALL)")
    slow_down(house, 0.003)
    retention = await house.due(ARCHIVED)
    await hold_some(house, retention)
    interrupted, chance = 0, random.Random(21)
    for kill in range(KILLS):
        house.fill("inbound_events", 40 + kill, 20_000)
        house.sql("INSERT INTO before SELECT * FROM inbound_events ON CONFLICT DO NOTHING")
        house.calendar.due += timedelta(milliseconds=1)
        interrupted += kill_in_a_run(house, archiving, chance.uniform(0.0, 0.5))
        house.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s' WHERE state = 'running'")
        if kill % 3 == 1:
            await retention.tick()
    house.calendar.due += timedelta(milliseconds=1)
    await retention.tick()
    assert interrupted > KILLS / 3  # otherwise they were killed before or after, and this shows nothing
    ids = [row["id"] for row in archived(house)]
    assert len(ids) == len(set(ids)) == sum(entry["deleted"] for entry in house.audited())
    assert len(ids) == sum(entry["archived"]["rows"] for entry in house.audited() if "archived" in entry)
    check_kept(house)
    assert house.count("before") == len(ids) + 200 + len(HELD)
    for (run,) in house.sql("SELECT DISTINCT run FROM retention_archives WHERE deleted > 0"):
        assert (await retention.operator.restore(run, restored_by="ann")).problems == ()
    assert difference(house, "inbound_events", "before") == []

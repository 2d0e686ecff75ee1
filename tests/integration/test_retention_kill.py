"""No row is deleted without its record, at whatever instant processes and servers are killed."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from support.archive import ARCHIVED, archived, difference
from support.postgres import PostgresServer
from support.replicas import Replicas, kill_during_run, wait_for
from support.retention import EVENTS, RetentionDB
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention import Condition, Retention
from watchkeeper.retention.ledger._attempts import RETRY_WAITS

# KILLS=100 kills at 100 random instants a test instead of fifteen.
KILLS = int(os.environ.get("KILLS", "15"))
HELD = tuple(f"39-{number}" for number in range(1, 31))


@pytest.fixture
def replicas(db: RetentionDB, tmp_path: Path) -> Iterator[Replicas]:
    """Processes to kill."""
    started = Replicas(db, tmp_path / "replicas")
    yield started
    started.close()


@pytest.fixture
def archiving_replicas(db: RetentionDB, tmp_path: Path) -> Iterator[Replicas]:
    """Processes to kill that archive what they delete."""
    started = Replicas(db, tmp_path / "replicas", "--archive", str(tmp_path / "archive"))
    yield started
    started.close()


async def hold_some(db: RetentionDB, retention: Retention) -> None:
    """Add old rows that a hold keeps."""
    db.fill("inbound_events", 39, len(HELD))
    kept = Condition(column="id", operator="in", values=HELD)
    await retention.operator.hold("inbound_events", [kept], reason="case 7", owner="legal")


def check_kept(db: RetentionDB) -> None:
    """Check that exactly the young and held rows are left."""
    young = db.count("inbound_events WHERE id LIKE '29-%'")
    held = db.count("inbound_events WHERE id LIKE '39-%'")
    assert (young, held, db.count("inbound_events")) == (200, len(HELD), 200 + len(HELD))


async def test_audited_rows_equal_deleted_rows_after_random_kills(
    db: RetentionDB, replicas: Replicas
) -> None:
    """After many kills and a restart the counts agree, and no young or held row is missing."""
    db.make_table()
    db.fill("inbound_events", 29, 200)
    db.slow_down(0.015)
    retention = await db.overdue(EVENTS)
    await hold_some(db, retention)
    rows, interrupted, chance = 0, 0, random.Random(20)
    for kill in range(KILLS):
        db.fill("inbound_events", 40 + kill, 6000)
        rows += 6000
        db.schedule.time += timedelta(milliseconds=1)
        interrupted += kill_during_run(db, replicas, chance.uniform(0.0, 0.12))
        db.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s' WHERE state = 'running'")
        if kill % 3:
            await retention.tick()
    db.schedule.time += timedelta(milliseconds=1)
    await retention.tick()
    assert interrupted > KILLS / 3  # otherwise they were killed before or after, and this shows nothing
    check_kept(db)
    assert sum(entry["deleted"] for entry in db.audit_payloads()) == rows
    assert db.sql("SELECT sum(rows_deleted) FROM retention_runs") == [(rows,)]
    assert db.count("retention_runs WHERE state = 'running' OR audit_id IS NULL") == 0
    assert len(db.audit_payloads()) == db.count("retention_runs")


async def test_run_of_a_killed_process_continues_at_its_cursor(db: RetentionDB, replicas: Replicas) -> None:
    """Each attempt's first pass begins later, and every row is deleted and counted once."""
    db.make_table(old=30_000)
    db.fill("inbound_events", 29, 200)
    db.slow_down(0.03)
    retention = await db.overdue(EVENTS)
    moved = "retention_runs WHERE state = 'running' AND cursor IS NOT NULL"
    for _ in RETRY_WAITS:
        replicas.start()
        wait_for(lambda: db.count(moved) == 1)
        replicas.kill()
        db.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s' WHERE state = 'running'")
        await retention.tick()
        db.sql("UPDATE retention_runs SET finished_at = finished_at - interval '1 hour'")
    assert [result.status for result in await retention.tick()] == ["completed"]
    cursors = [at for (at,) in db.sql("SELECT (cursor ->> 'at')::int FROM retention_runs ORDER BY attempt")]
    assert 0 < cursors[0] < cursors[1] < cursors[2] < cursors[3]
    assert db.count("inbound_events") == 200
    assert [state for _, state, _ in db.runs()] == ["failed"] * 3 + ["completed"]
    assert db.sql("SELECT sum(rows_deleted) FROM retention_runs") == [(30_000,)]
    assert sum(entry["deleted"] for entry in db.audit_payloads()) == 30_000


async def test_audited_rows_equal_deleted_rows_after_kills_of_the_server(
    private_db: RetentionDB, postgres_private: PostgresServer
) -> None:
    """The server crashes during runs and recovers; each row is counted once."""
    db = private_db
    db.make_table()
    db.fill("inbound_events", 29, 200)
    db.slow_down(0.015)
    retention = await db.overdue(EVENTS)
    await hold_some(db, retention)
    rows, in_the_middle, chance = 0, 0, random.Random(22)
    for kill in range(KILLS):
        db.fill("inbound_events", 60 + kill, 6000)
        rows += 6000
        db.schedule.time += timedelta(milliseconds=1)
        running = asyncio.create_task(retention.tick())
        await asyncio.sleep(chance.uniform(0.0, 0.08))
        in_the_middle += not running.done()
        db.close()
        postgres_private.stop(signal.SIGQUIT)  # at once and without a checkpoint, as a crash
        postgres_private.start()
        db.reconnect()
        try:
            await running
        except DatabaseUnavailableError:  # before there was a run
            await retention.tick()
        db.sql("VACUUM inbound_events")
    db.schedule.time += timedelta(milliseconds=1)
    await retention.tick()
    assert in_the_middle > KILLS / 3
    check_kept(db)
    assert sum(entry["deleted"] for entry in db.audit_payloads()) == rows
    assert db.sql("SELECT sum(rows_deleted) FROM retention_runs") == [(rows,)]
    assert db.count("retention_runs WHERE state = 'running' OR audit_id IS NULL") == 0


@pytest.mark.parametrize("count", [2, 5, 10])
async def test_processes_started_together_make_one_run(
    db: RetentionDB, archiving_replicas: Replicas, count: int
) -> None:
    """One of them prunes, and archives each row once."""
    db.make_table(old=4000)
    await db.overdue(ARCHIVED)
    for _ in range(count):
        archiving_replicas.start()
    archiving_replicas.wait()
    assert db.runs() == [(1, "completed", 4000)]
    assert [entry["deleted"] for entry in db.audit_payloads()] == [4000]
    assert len({row["id"] for row in archived(db)}) == len(archived(db)) == 4000


async def test_archived_rows_equal_deleted_rows_after_random_kills(
    db: RetentionDB, archiving_replicas: Replicas
) -> None:
    """After many kills and a restart each deleted row is in the archive once, and comes back."""
    db.make_table()
    db.fill("inbound_events", 29, 200)
    db.sql("CREATE TABLE before (LIKE inbound_events INCLUDING ALL)")
    db.slow_down(0.003)
    retention = await db.overdue(ARCHIVED)
    await hold_some(db, retention)
    interrupted, chance = 0, random.Random(21)
    for kill in range(KILLS // 2):
        db.fill("inbound_events", 40 + kill, 20_000)
        db.sql("INSERT INTO before SELECT * FROM inbound_events ON CONFLICT DO NOTHING")
        db.schedule.time += timedelta(milliseconds=1)
        interrupted += kill_during_run(db, archiving_replicas, chance.uniform(0.0, 0.5))
        db.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s' WHERE state = 'running'")
        if kill % 3 == 1:
            await retention.tick()
    db.schedule.time += timedelta(milliseconds=1)
    await retention.tick()
    assert interrupted > KILLS / 6  # otherwise they were killed before or after, and this shows nothing
    ids = [row["id"] for row in archived(db)]
    assert len(ids) == len(set(ids)) == sum(entry["deleted"] for entry in db.audit_payloads())
    assert len(ids) == sum(entry["archived"]["rows"] for entry in db.audit_payloads() if "archived" in entry)
    check_kept(db)
    assert db.count("before") == len(ids) + 200 + len(HELD)
    for (run,) in db.sql("SELECT DISTINCT run FROM retention_archives WHERE deleted > 0"):
        assert (await retention.operator.restore(run, restored_by="ann")).problems == ()
    assert difference(db, "inbound_events", "before") == []

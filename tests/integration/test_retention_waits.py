"""What a run waits for: the server really is under pressure, the run waits, and continues afterwards."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from support.postgres import SERVICE, PostgresServer
from support.retention import EVENTS, RetentionDB, open_db, tick_beside, until
from watchkeeper.retention import Limits, Retention, RunResult, Thresholds
from watchkeeper.retention.run._tuning import Sizes

MIB = 1 << 20
REPLICATED = {
    "wal_level": "replica",
    "max_wal_senders": "4",
    "max_replication_slots": "4",
    "max_prepared_transactions": "2",
    "archive_mode": "on",
    "autovacuum": "on",
    # So that nothing is vacuumed and nothing checkpointed but what a test asks for.
    "autovacuum_naptime": "1h",
    "max_wal_size": "64MB",
    "checkpoint_timeout": "1h",
    "checkpoint_completion_target": "0",
}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that can be replicated and archives its WAL."""
    made = PostgresServer(settings=REPLICATED)
    try:
        made.start()
        made.prepare()
        yield made
    finally:
        made.remove()


@pytest.fixture
def replica(server: PostgresServer) -> Iterator[PostgresServer]:
    """A replica of the server."""
    made = PostgresServer(settings=REPLICATED, standby_of=server)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
async def db(server: PostgresServer, tmp_path: Path) -> AsyncIterator[RetentionDB]:
    """The database on that server, with 3000 old rows."""
    urls = server.create_database("wk_template")
    async with open_db(urls, tmp_path) as opened:
        opened.make_table(old=3000)
        yield opened
    server.drop_database(urls.name)


@contextmanager
def superuser(server: PostgresServer) -> Iterator[psycopg.Connection]:
    """Connect as the superuser."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        yield conn


def write_wal(server: PostgresServer, mib: int) -> None:
    """Write this much WAL."""
    with superuser(server) as conn:
        conn.execute(
            "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1048576)))"
            " FROM generate_series(1, %s)",
            [mib],
        )


def limits(*, budget: float = 0.9, timeout: timedelta = timedelta(hours=1), **thresholds: Any) -> Limits:
    """Return limits with small thresholds."""
    return Limits(share=1.0, budget=budget, timeout=timeout, thresholds=Thresholds(**thresholds))


SHORT_TRANSACTIONS = limits(transaction=timedelta(seconds=0.2))


def waiting(db: RetentionDB) -> str | None:
    """Return the reason that the ledger shows for the open run, without details."""
    rows = db.sql("SELECT waiting FROM retention_runs WHERE state = 'running'")
    return rows[0][0].partition(":")[0] if rows and rows[0][0] else None


@asynccontextmanager
async def long_transaction(url: str) -> AsyncIterator[psycopg.Connection]:
    """Keep a transaction with an ID open for longer than these tests allow."""
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_current_xact_id()")
        await asyncio.sleep(0.3)
        yield other


@asynccontextmanager
async def waiting_run(db: RetentionDB, retention: Retention, reason: str) -> AsyncIterator[asyncio.Task[Any]]:
    """Run until it waits for the reason; check that nothing is deleted meanwhile, and everything after."""
    run = asyncio.create_task(retention.run_now())
    await until(lambda: waiting(db) == reason)
    before = db.count("inbound_events")
    await asyncio.sleep(1.2)
    assert (waiting(db), db.count("inbound_events")) == (reason, before)
    await retention.refresh_metrics()
    assert db.sample("retention_waiting", table="inbound_events", reason=reason) == 1
    yield run
    (result,) = await asyncio.wait_for(run, 60)
    assert (result.status, db.count("inbound_events")) == ("completed", 0)
    assert db.sql("SELECT waiting FROM retention_runs") == [(None,)]
    lines = begun, ended, _ = db.lines("retention")
    assert [line["status"] for line in lines] == ["waiting", "resumed", "completed"]
    assert (begun["level"], begun["table"]) == ("warn", "inbound_events")
    assert (begun["run"], begun["reason"]) == (ended["run"], ended["reason"]) == (result.run, reason)
    assert ended["duration"] >= 1000


async def test_run_waits_for_a_lagging_replica(
    db: RetentionDB, server: PostgresServer, replica: PostgresServer
) -> None:
    """Its replay is paused, and the run waits until it has caught up."""
    with superuser(replica) as conn:
        conn.execute("SELECT pg_wal_replay_pause()")
        write_wal(server, 3)
        retention = db.retention(EVENTS, limits=limits(lag_bytes=2 * MIB))
        async with waiting_run(db, retention, "replication lag"):
            assert "the replica walreceiver is 3 MiB behind" in db.lines("retention")[0]["msg"]
            conn.execute("SELECT pg_wal_replay_resume()")


async def test_run_waits_for_a_replica_that_lags_by_time(
    db: RetentionDB, server: PostgresServer, replica: PostgresServer
) -> None:
    """Two seconds, which is few bytes."""
    with superuser(replica) as standby, superuser(server) as conn:
        standby.execute("ALTER SYSTEM SET recovery_min_apply_delay = '2s'")
        standby.execute("SELECT pg_reload_conf()")
        lag = None
        deadline = time.monotonic() + 60
        while lag is None or lag < timedelta(seconds=1.5):
            assert time.monotonic() < deadline
            db.sql("INSERT INTO inbound_events VALUES (gen_random_uuid(), now() - interval '50 days')")
            await asyncio.sleep(0.1)
            ((lag,),) = conn.execute("SELECT max(replay_lag) FROM pg_stat_replication").fetchall()
        retention = db.retention(EVENTS, limits=limits(lag=timedelta(seconds=1)))
        async with waiting_run(db, retention, "replication lag"):
            assert "the replica walreceiver is 2 s behind" in db.lines("retention")[0]["msg"]
            standby.execute("ALTER SYSTEM RESET recovery_min_apply_delay")
            standby.execute("SELECT pg_reload_conf()")


async def test_run_waits_for_an_unread_slot(db: RetentionDB, server: PostgresServer) -> None:
    """It keeps WAL on the disk, so an unthrottled run waits too, until it is dropped."""
    with superuser(server) as conn:
        conn.execute("SELECT pg_create_physical_replication_slot('unused', true)")
        write_wal(server, 3)
        retention = db.retention(EVENTS, limits=limits(budget=1.0, lag_bytes=MIB // 8))
        async with waiting_run(db, retention, "replication lag"):
            assert "the replication slot unused keeps " in db.lines("retention")[0]["msg"]
            conn.execute("SELECT pg_drop_replication_slot('unused')")


async def test_run_waits_for_a_failing_archiver(db: RetentionDB, server: PostgresServer) -> None:
    """WAL piles up until its command works again."""
    with superuser(server) as conn:
        conn.execute("ALTER SYSTEM SET archive_command = '/bin/false'")
        conn.execute("SELECT pg_reload_conf(), pg_switch_wal()")
        try:
            async with waiting_run(db, db.retention(EVENTS, limits=limits()), "wal"):
                assert "archiving WAL fails (archive_command, 0" in db.lines("retention")[0]["msg"]
                conn.execute("ALTER SYSTEM SET archive_command = '/bin/true'")
                conn.execute("SELECT pg_reload_conf()")
        finally:
            conn.execute("ALTER SYSTEM RESET archive_command")
            conn.execute("SELECT pg_reload_conf()")


async def test_run_waits_for_a_late_checkpoint(db: RetentionDB, server: PostgresServer) -> None:
    """More WAL than max_wal_size was written since the last one."""
    with superuser(server) as conn:
        ((pid,),) = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        ).fetchall()
        os.kill(pid, signal.SIGSTOP)
        try:
            write_wal(server, 66)
            async with waiting_run(db, db.retention(EVENTS, limits=limits()), "wal"):
                assert " of WAL were written since the last checkpoint" in db.lines("retention")[0]["msg"]
                os.kill(pid, signal.SIGCONT)
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_run_waits_for_a_prepared_transaction(db: RetentionDB) -> None:
    """It blocks vacuum like any other, although no connection shows it."""
    with psycopg.connect(db.urls.owner_url, autocommit=True) as other:
        other.execute("BEGIN")
        other.execute("SELECT pg_current_xact_id()")
        other.execute("PREPARE TRANSACTION 'forgotten'")
        await asyncio.sleep(0.3)
        retention = db.retention(EVENTS, limits=SHORT_TRANSACTIONS)
        async with waiting_run(db, retention, "long transaction"):
            assert "keeper_owner (prepared: forgotten)" in db.lines("retention")[0]["msg"]
            other.execute("ROLLBACK PREPARED 'forgotten'")


async def test_run_does_not_wait_for_harmless_transactions(db: RetentionDB, server: PostgresServer) -> None:
    """One without a snapshot, and one in another database."""
    with psycopg.connect(db.urls.owner_url) as idle:
        idle.execute("SELECT 1")
        async with long_transaction(server.url()):
            (result,) = await db.retention(EVENTS, limits=SHORT_TRANSACTIONS).run_now()
    assert [line["status"] for line in db.lines("retention")] == [result.status] == ["completed"]


async def test_run_waits_for_a_long_transaction_on_each_supported_server(any_db: RetentionDB) -> None:
    """Deleted rows could not be vacuumed while it is open."""
    any_db.make_table(old=3000)
    async with long_transaction(any_db.urls.owner_url) as other:
        retention = any_db.retention(EVENTS, limits=SHORT_TRANSACTIONS)
        async with waiting_run(any_db, retention, "long transaction"):
            assert "a transaction of keeper_owner (pid" in any_db.lines("retention")[0]["msg"]
            (status,) = await retention.status()
            assert status.vacuum is not None
            assert not status.vacuum.automatic
            other.rollback()


async def test_unthrottled_run_does_not_wait_for_long_transactions(db: RetentionDB) -> None:
    """`--budget 1` says that time matters more."""
    async with long_transaction(db.urls.owner_url):
        flat_out = limits(budget=1.0, transaction=timedelta(seconds=0.2))
        (result,) = await db.retention(EVENTS, limits=flat_out).run_now()
    assert [line["status"] for line in db.lines("retention")] == [result.status] == ["completed"]


def leave_dead_rows(db: RetentionDB) -> None:
    """Delete rows as another user would, and update the statistics."""
    db.fill("inbound_events", 39, 3000)
    db.sql("DELETE FROM inbound_events WHERE id LIKE '39-%%'")
    db.sql("SELECT pg_stat_force_next_flush()")
    db.sql("ANALYZE inbound_events")
    db.sql("SELECT pg_stat_clear_snapshot()")


async def test_run_waits_for_a_late_vacuum(db: RetentionDB) -> None:
    """3000 dead rows exceed three times 50 plus a fifth of 3000; the run continues after a vacuum."""
    db.sql("ALTER TABLE inbound_events SET (autovacuum_vacuum_scale_factor = 0.1)")
    leave_dead_rows(db)
    async with waiting_run(db, db.retention(EVENTS, limits=limits()), "vacuum"):
        assert (
            "3,000 dead rows of inbound_events wait for vacuum, which starts at 350"
            in (db.lines("retention")[0]["msg"])
        )
        (status,) = await db.retention(EVENTS).status()
        assert (status.vacuum and (status.vacuum.dead, status.vacuum.is_behind())) == (3000, True)
        db.sql("VACUUM inbound_events")


@pytest.mark.parametrize(("grace_s", "waits"), [(120.0, False), (0.0, True)])
async def test_run_does_not_wait_for_its_own_dead_rows_at_once(
    db: RetentionDB, grace_s: float, *, waits: bool
) -> None:
    """It waits after the grace period only, and then for a bounded time."""
    db.tune(
        check_interval=timedelta(seconds=0.05),
        vacuum_grace=timedelta(seconds=grace_s),
        blocks=Sizes(first=8, smallest=8, largest=8, largest_empty=8),
    )
    db.sql("ALTER TABLE inbound_events SET (autovacuum_vacuum_scale_factor = 0.01)")
    db.fill("inbound_events", 41, 8000)
    db.slow_down(0.2)
    db.sql("ANALYZE inbound_events")
    bounded = limits(vacuum_wait=timedelta(seconds=0.3))
    (result,) = await db.retention(EVENTS, limits=bounded).run_now()
    assert (result.status, db.count("inbound_events")) == ("completed", 0)
    assert any(line["status"] == "waiting" for line in db.lines("retention")) is waits


@pytest.mark.parametrize("off", ["autovacuum_enabled = false", "autovacuum_vacuum_scale_factor = 0.5"])
async def test_run_does_not_wait_for_a_vacuum_that_is_not_late(db: RetentionDB, off: str) -> None:
    """Autovacuum is off for the table, or its threshold is not reached."""
    db.sql(f"ALTER TABLE inbound_events SET ({off})")
    leave_dead_rows(db)
    (result,) = await db.retention(EVENTS, limits=limits()).run_now()
    assert [line["status"] for line in db.lines("retention")] == [result.status] == ["completed"]


async def test_run_waits_for_a_nearly_full_disk(db: RetentionDB) -> None:
    """A delete writes WAL before it frees anything, so an unthrottled run waits too."""
    free = [MIB]
    retention = db.retention(EVENTS, limits=limits(budget=1.0), free_space=lambda: (free[0], 100 * MIB))
    async with waiting_run(db, retention, "disk"):
        assert "1 MiB are free where the database is" in db.lines("retention")[0]["msg"]
        free[0] = 6 * MIB


async def test_missing_privilege_is_reported_once(db: RetentionDB, server: PostgresServer) -> None:
    """The sentence has the GRANT that fixes it; runs continue, and the other checks still work."""
    db.sql("ALTER TABLE inbound_events SET (autovacuum_enabled = false)")  # or the second run may wait for it
    role = sql.Identifier(SERVICE)
    server.execute(sql.SQL("REVOKE pg_read_all_stats FROM {}").format(role))
    try:
        retention = db.retention(EVENTS, limits=SHORT_TRANSACTIONS)
        async with long_transaction(db.urls.owner_url):
            results = [*await retention.run_now(), *await retention.run_now()]
    finally:
        server.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(role))
    assert [result.status for result in results] == ["completed", "completed"]
    blind, *rest = db.lines("retention")
    assert (blind["level"], blind["status"]) == ("warn", "missing_privilege")
    assert "GRANT pg_read_all_stats TO keeper" in blind["msg"]
    assert [line["status"] for line in rest] == ["completed", "completed"]


async def test_revoked_function_is_reported_once(db: RetentionDB, server: PostgresServer) -> None:
    """A hosted server may lack it, and the run continues."""
    function = sql.SQL("FUNCTION pg_control_checkpoint()")
    server.execute(sql.SQL("REVOKE EXECUTE ON {} FROM PUBLIC").format(function), db.urls.name)
    (result,) = await db.retention(EVENTS, limits=limits()).run_now()
    assert result.status == "completed"
    assert "permission denied for function pg_control_checkpoint" in db.lines("retention")[0]["msg"]


async def start_waiting_run(db: RetentionDB, retention: Retention) -> asyncio.Task[list[RunResult]]:
    """Start a scheduled run that waits for a disk which stays full."""
    run = asyncio.create_task(retention.tick())
    await until(lambda: waiting(db) == "disk")
    return run


async def test_run_that_waits_too_long_fails(db: RetentionDB) -> None:
    """Its error says what it waited for, and the next attempt comes after its wait."""
    short = limits(timeout=timedelta(seconds=1.5))
    retention = await db.overdue(EVENTS, limits=short, free_space=lambda: (0, MIB))
    (result,) = await retention.tick()
    assert (result.status, result.deleted) == ("failed", 0)
    assert "was ended after 0:00:01.5" in str(result.error)
    assert "It waited 0:00:02 (disk)." in str(result.error)
    ((waits, error),) = db.sql("SELECT waiting, error ->> 'type' FROM retention_runs")
    assert (waits, error) == (None, "RunTimeoutError")
    assert await retention.tick() == []


async def test_waiting_run_renews_its_lease(db: RetentionDB) -> None:
    """No other process closes it, however long it waits."""
    lease = timedelta(seconds=2)
    waits = await db.overdue(EVENTS, limits=limits(), lease=lease, free_space=lambda: (0, MIB))
    run = await start_waiting_run(db, waits)
    await asyncio.sleep(2.5)
    assert await db.retention(EVENTS, lease=lease).tick() == []
    waits.interrupt()
    (result,) = await run
    assert (result.status, db.runs()) == ("stopped", [(1, "stopped", 0)])


async def test_long_pause_renews_the_lease_and_ends_at_the_timeout(db: RetentionDB) -> None:
    """With a tiny budget the run pauses for many leases after each transaction."""
    lease = timedelta(seconds=0.6)
    slow = limits(budget=0.0001, timeout=timedelta(seconds=1.5))
    retention = await db.overdue(EVENTS, limits=slow, lease=lease)
    other = db.retention(EVENTS, lease=lease)
    began = time.monotonic()
    (result,) = await tick_beside(db, retention, other)
    assert result.status == "failed"
    assert "was ended after 0:00:01.5" in str(result.error)
    assert time.monotonic() - began > 1.5
    assert 0 < db.count("inbound_events") < 3000


@pytest.mark.parametrize(("word", "status"), [("cancel", "cancelled"), ("pause", "stopped")])
async def test_operator_commands_end_a_waiting_run(db: RetentionDB, word: str, status: str) -> None:
    """Its rows stay."""
    retention = await db.overdue(EVENTS, limits=limits(), free_space=lambda: (0, MIB))
    run = await start_waiting_run(db, retention)
    await getattr(retention.operator, word)("inbound_events", by="ann")
    (result,) = await asyncio.wait_for(run, 60)
    assert (result.status, db.count("inbound_events")) == (status, 3000)

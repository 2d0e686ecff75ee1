"""Known faults of other retention engines that this one does not have; each test names the peer's issue."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.pgbouncer import running_bouncer, through
from support.postgres import PostgresServer
from support.prometheus import exporting, run_tool, running_prometheus, variant, wait_until
from support.retention import BOTH_SCANS, EVENTS, OnDeleted, RetentionDB, open_databases, until
from watchkeeper.retention._schedule import Schedule
from watchkeeper.retention._scheduler import Scheduler
from watchkeeper.retention.ledger._interrupts import RunLostError
from watchkeeper.retention.run._batch import AgeRange, BatchResult

POLL = timedelta(milliseconds=20)
HOLD: dict[str, Any] = {"reason": "case 7", "owner": "legal"}


def put_rows_back(db: RetentionDB) -> None:
    """Insert each deleted row again, as an archiving trigger on the wrong table does."""
    action = "INSERT INTO inbound_events SELECT OLD.*; RETURN NULL"
    db.on_delete(action, "AFTER DELETE ON inbound_events FOR EACH ROW")


@BOTH_SCANS
async def test_pain_1_rows_that_come_back_are_seen(db: RetentionDB, *, indexed: bool) -> None:
    """apache/airflow#65239: a clean-up job was green and deleted nothing; the backlog shows it."""
    db.force_index_scans()
    db.tune(pass_waits=(timedelta(0),) * 2)
    db.make_table(indexed=indexed, old=300)
    put_rows_back(db)
    retention = await db.overdue(EVENTS)
    (result,) = await retention.tick()
    await retention.refresh_metrics()
    assert result.deleted >= 300
    if indexed:
        assert result.status == "completed"
        success = db.sample("retention_last_success_timestamp_seconds", table="inbound_events")
        assert success is not None
    ((oldest,),) = db.sql("SELECT min(received_at) FROM inbound_events")
    assert db.sample("retention_backlog_rows", table="inbound_events") == 300
    seen = db.sample("retention_oldest_eligible_timestamp_seconds", table="inbound_events")
    assert seen == pytest.approx(oldest.timestamp())


async def test_pain_1_bug_that_finds_no_rows_is_seen(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apache/airflow#65239, were the bug ours: the backlog does not come from what a run believes."""

    async def blind(*_: object) -> BatchResult:
        return BatchResult(eligible=0, available=0, deleted=0, covered=AgeRange(), rest=None)

    for way in ("delete_plain", "delete_skip_locked"):
        monkeypatch.setattr(f"watchkeeper.retention.run._batches.{way}", blind)
    db.make_table(old=300)
    retention = await db.overdue(EVENTS)
    (result,) = await retention.tick()
    await retention.refresh_metrics()
    assert (result.status, result.deleted) == ("completed", 0)
    assert db.sample("retention_backlog_rows", table="inbound_events") == 300


def write_history(folder: Path, hours: int) -> None:
    """Give Prometheus a past with an overdue row, as the recording rule would leave it."""
    now = time.time()
    lines = ["# TYPE table:retention_excess_seconds:max gauge"]
    for at in range(int(now - hours * 3600), int(now), 300):
        labels = '{job="realestate-backend",table="inbound_events"}'
        lines.append(f"table:retention_excess_seconds:max{labels} {8 * 86400} {at}")
    (folder / "past").write_text("\n".join((*lines, "# EOF\n")), encoding="utf-8")
    code, said = run_tool(
        "promtool", "tsdb", "create-blocks-from", "openmetrics", "past", "data", folder=folder
    )
    assert code == 0, said


async def wait(true: Callable[[], object]) -> None:
    """Wait until a condition of another process holds."""
    await asyncio.to_thread(wait_until, true, "such state")


async def test_pain_1_raises_an_alert(db: RetentionDB, tmp_path: Path) -> None:
    """apache/airflow#65239: a real Prometheus with the shipped rules alerts until the rows are gone."""
    db.force_index_scans()
    db.make_table()
    db.fill("inbound_events", 39, 5)
    put_rows_back(db)
    retention = await db.overdue(EVENTS)
    (result,) = await retention.tick()
    await retention.refresh_metrics()
    assert result.status == "completed"
    with exporting(db.registry, "the-token") as exporter:
        config = variant(tmp_path / "prometheus", target=exporter.address, token="the-token")
        write_history(config.parent, hours=28)
        with running_prometheus(config) as prometheus:
            excess = "table:retention_excess_seconds:max"
            await wait(
                lambda: any(9 * 86400 < found < 9.1 * 86400 for found in prometheus.query(excess).values())
            )
            await wait(lambda: prometheus.firing() >= {"RetentionBacklog"})
            ((labels, _),) = prometheus.query('ALERTS{alertname="RetentionBacklog"}').items()
            assert dict(labels)["table"] == "inbound_events"
            assert not prometheus.query('ALERTS{alertname="RetentionOverdue", table="inbound_events"}')
            db.sql("ALTER TABLE inbound_events DISABLE TRIGGER act")
            await retention.run_now()
            await db.retention(EVENTS).refresh_metrics()
            await wait(lambda: "RetentionBacklog" not in prometheus.firing())


@BOTH_SCANS
async def test_pain_2_delete_that_would_time_out_is_split(db: RetentionDB, *, indexed: bool) -> None:
    """apache/airflow#47600, que-rb/que#299: one giant DELETE times out every night."""
    db.force_index_scans()
    timeout = timedelta(milliseconds=700)
    db.tune(statement_timeout=timeout)
    db.make_table(indexed=indexed, old=700)
    action = "PERFORM pg_sleep(0.002); RETURN OLD"
    db.on_delete(action, "BEFORE DELETE ON inbound_events FOR EACH ROW")
    async with db.database.transaction() as conn:
        await conn.execute("SET LOCAL statement_timeout = '700ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            async with conn.transaction():
                await conn.execute(
                    "DELETE FROM inbound_events WHERE received_at < now() - interval '30 days'"
                )
    (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("completed", 700, 0)


async def test_pain_3_ten_replicas_make_one_run(db: RetentionDB) -> None:
    """node-cron#159, node-cron#423: every replica runs the job; here ten check at the scheduled instant."""
    db.make_contract_tables()
    db.fill("inbound_events", 45, 3000)
    await db.retention().register()
    async with AsyncExitStack() as stack:
        databases = await open_databases(stack, db.urls.url, 10)
        loops = [
            asyncio.create_task(Scheduler(db.retention(database=database), poll=POLL).run())
            for database in databases
        ]
        await asyncio.sleep(0.5)
        assert db.audit_payloads() == []
        db.schedule.time = datetime.now(UTC)
        await until(lambda: len(db.audit_payloads()) == 2)
        await asyncio.sleep(0.2)  # a late one would run now
        for loop in loops:
            loop.cancel()
            with suppress(asyncio.CancelledError):
                await loop
    assert db.runs() == [(1, "completed", 3003)]
    assert db.runs("chat_sessions") == [(1, "completed", 2)]
    assert sorted(entry["deleted"] for entry in db.audit_payloads()) == [2, 3003]
    assert db.sample("retention_rows_deleted_total", table="inbound_events") == 3003
    assert (
        db.job_statuses().count("started") == db.job_statuses().count("completed") <= 2
    )  # one replica's, or one a table


async def test_pain_4_behind_pgbouncer_a_run_has_one_owner(db: RetentionDB, postgres: PostgresServer) -> None:
    """goauthentik/authentik#23876: leader election by advisory locks breaks behind PgBouncer."""
    db.limit_batches(rows=200, blocks=4)
    db.make_table(indexed=False, old=6000)
    db.slow_down(0.02)
    await db.overdue(EVENTS)
    async with AsyncExitStack() as stack:
        url = through(stack.enter_context(running_bouncer(postgres)), db.urls).url
        databases = await open_databases(stack, url, 4, prepared_statements=False)
        # Its lease is over at once: others close the run, and it deletes nothing more.
        first = db.retention(EVENTS, database=databases[0], lease=timedelta(0))
        others = [db.retention(EVENTS, database=database) for database in databases[1:]]
        running = asyncio.create_task(first.tick())
        await until(lambda: db.count("retention_runs WHERE rows_deleted > 0"))
        closed = [result for some in await asyncio.gather(*(r.tick() for r in others)) for result in some]
        assert [(result.run, result.status) for result in closed] == [(1, "failed")]
        db.sql("UPDATE retention_runs SET finished_at = finished_at - interval '2 min' WHERE id = 1")
        done = [result for some in await asyncio.gather(*(r.tick() for r in others)) for result in some]
        (lost,) = await running
    assert isinstance(lost.error, RunLostError)
    assert [(result.status, result.deleted) for result in done] == [("completed", 6000 - closed[0].deleted)]
    assert db.count("inbound_events") == 0
    assert [entry["deleted"] for entry in db.audit_payloads()] == [closed[0].deleted, done[0].deleted]
    assert db.runs() == [(1, "failed", closed[0].deleted), (2, "completed", done[0].deleted)]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
async def test_pain_5_run_missed_during_a_restart_is_caught_up_once(db: RetentionDB, zone: str) -> None:
    """apscheduler#296: a run that was due while the service restarted is dropped."""
    db.make_table()
    calendar = Schedule(timezone=zone)
    await (await db.overdue(EVENTS, schedule=calendar)).tick()
    db.sql(
        "UPDATE retention_runs SET due_at = due_at - interval '3 days',"
        " started_at = started_at - interval '3 days', finished_at = finished_at - interval '3 days'"
    )
    db.fill("inbound_events", 40, 5)
    async with AsyncExitStack() as stack:
        databases = await open_databases(stack, db.urls.url, 3)
        replicas = [db.retention(EVENTS, database=one, schedule=calendar) for one in databases]
        results = await asyncio.gather(*(replica.tick() for replica in replicas))
        assert [(result.status, result.deleted) for some in results for result in some] == [("completed", 5)]
        assert await asyncio.gather(*(replica.tick() for replica in replicas)) == [[], [], []]
    ((due,),) = db.sql("SELECT max(due_at) FROM retention_runs")
    assert due == calendar.last_before(datetime.now(UTC))
    assert len(db.audit_payloads()) == 2


ROUNDS = 8


@BOTH_SCANS
async def test_pain_8_hold_applies_at_any_instant_of_a_run(db: RetentionDB, *, indexed: bool) -> None:
    """preloop#685: a purge ignores a legal hold; here no held row is deleted once the command returned."""
    db.force_index_scans()
    db.limit_batches(rows=200, blocks=2)
    db.make_table(indexed=indexed)
    db.slow_down(0.025)
    retention = await db.overdue(EVENTS)
    chance, in_the_middle = random.Random(8), 0
    for number in range(ROUNDS):
        db.sql("TRUNCATE inbound_events")
        db.fill("inbound_events", 40, 3000)
        db.schedule.time += timedelta(milliseconds=1)
        run = asyncio.create_task(retention.tick())
        goal = chance.randrange(3000) if number else 3000
        while db.count("inbound_events") > goal and not run.done():  # noqa: ASYNC110 - a state of the database
            await asyncio.sleep(0.002)
        hold = await db.retention(EVENTS).operator.hold("inbound_events", [], **HOLD)
        held = db.count("inbound_events")
        (result,) = await run
        assert (result.status, db.count("inbound_events")) == ("completed", held)
        assert result.deleted == 3000 - held
        in_the_middle += 0 < held < 3000
        await retention.operator.release(hold.id, released_by="legal")
    assert in_the_middle  # otherwise this shows nothing


@BOTH_SCANS
async def test_pain_8_holds_that_become_unreadable_end_the_run(db: RetentionDB, *, indexed: bool) -> None:
    """preloop#685: rows that may be held stay, from the very next transaction on."""
    db.force_index_scans()
    db.make_table(indexed=indexed, old=5000)
    left: list[int] = []

    def close_the_holds(_table: str, _rows: int) -> None:
        db.sql("REVOKE SELECT ON retention_holds FROM keeper")
        left.append(db.count("inbound_events"))

    (result,) = await db.retention(EVENTS).run_now(observer=OnDeleted(close_the_holds))
    assert result.status == "failed"
    assert isinstance(result.error, psycopg.errors.InsufficientPrivilege)
    assert [db.count("inbound_events")] == left
    assert 0 < left[0] < 5000
    assert [entry["deleted"] for entry in db.audit_payloads()] == [5000 - left[0]]

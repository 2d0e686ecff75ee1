"""Operator commands: pause, resume from the cursor, cancel."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from support.archive import ARCHIVED
from support.retention import EVENTS, OPEN_RUN, RetentionDB, until
from watchkeeper.exceptions import ArchiveError, ConfigurationError
from watchkeeper.retention import FolderArchive, Location, Retention, RunResult
from watchkeeper.retention.ledger._interrupts import RunCancelledError, RunPausedError
from watchkeeper.retention.run._batch import AgeRange, Range, delete_plain

ROWS = 40_000


@pytest.fixture(params=[True, False], ids=["index scan", "block scan"])
async def full_db(db: RetentionDB, request: pytest.FixtureRequest) -> RetentionDB:
    """The database with many old rows and one young, found by index or block scan, a few at a time."""
    db.force_index_scans()
    db.limit_batches(rows=2000, blocks=16)
    db.make_table(indexed=request.param, old=ROWS)
    db.fill("inbound_events", 1, 1)
    return db


async def act_during_run(
    retention: Retention, say: Callable[[], Any], *, tick: bool = True
) -> tuple[RunResult, Any]:
    """Run, and act after the first rows were deleted; return the results of both."""
    tasks: list[asyncio.Task[Any]] = []
    sent = retention._metrics.deleted

    def once(table: str, rows: int) -> None:
        sent(table, rows)
        if not tasks:
            tasks.append(asyncio.create_task(say()))

    retention._metrics.deleted = once  # type: ignore[method-assign]
    (result,) = await (retention.tick() if tick else retention.run_now())
    retention._metrics.deleted = sent  # type: ignore[method-assign]
    return result, await tasks[0]


async def test_paused_policy_deletes_nothing_until_resumed(full_db: RetentionDB) -> None:
    """The open run stops and is audited, none is claimed, and the same scheduled time continues later."""
    db = full_db
    retention, operator = await db.overdue(EVENTS), db.retention(EVENTS).operator

    async def pause() -> int:
        await operator.pause("inbound_events", by="ann")
        return db.count("inbound_events")

    result, left = await act_during_run(retention, pause)
    assert (result.status, db.count("inbound_events")) == ("stopped", left)
    assert isinstance(result.error, RunPausedError)
    assert 1 < left < ROWS + 1
    assert await retention.tick() == []
    (refused,) = await db.retention(EVENTS).run_now()
    assert (refused.status, refused.run) == ("failed", None)
    assert "inbound_events is paused by ann since 20" in str(refused.error)
    assert "`retention resume inbound_events` lets it run again" in str(refused.error)
    (status,) = await retention.status()
    assert (status.paused_by, status.last and status.last.state) == ("ann", "stopped")

    await operator.resume("inbound_events", by="bob")
    (result,) = await retention.tick()
    assert (result.status, db.count("inbound_events")) == ("completed", 1)
    assert db.runs() == [(1, "stopped", ROWS + 1 - left), (2, "completed", left - 1)]
    assert db.sql("SELECT count(DISTINCT due_at) FROM retention_runs") == [(1,)]
    assert db.sql("SELECT actor_type, actor_id, action, payload -> 'run' FROM audit_log ORDER BY id") == [
        ("user", "ann", "retention.pause", 1),
        ("system", "retention-job", "retention.prune", 1),
        ("user", "bob", "retention.resume", None),
        ("system", "retention-job", "retention.prune", 2),
    ]
    # The one that failed is the operator's own run; a paused policy is no failure of the job.
    assert db.job_statuses() == ["scheduled", "started", "completed", "failed", "started", "completed"]


def record_sweeps(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """Record where plain sweeps begin; only the first pass has those."""
    seen: list[Range] = []

    async def noting(conn: Any, target: Any, horizon: Any, span: Range, size: int) -> Any:
        seen.append(span)
        return await delete_plain(conn, target, horizon, span, size)

    monkeypatch.setattr("watchkeeper.retention.run._batches.delete_plain", noting)
    return seen


async def stop_during_run(db: RetentionDB, retention: Retention, *, tick: bool = True) -> RunResult:
    """Stop the process after the first rows were deleted."""

    async def stop() -> None:
        retention.interrupt()

    result, _ = await act_during_run(retention, stop, tick=tick)
    assert result.status == "stopped"
    assert db.count("inbound_events") > 1
    return result


async def test_next_attempt_continues_at_the_cursor(
    full_db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first pass begins at the cursor; earlier blocks are left to the later passes."""
    db = full_db
    await stop_during_run(db, await db.overdue(EVENTS))
    ((cursor, deleted),) = db.sql("SELECT cursor, rows_deleted FROM retention_runs")
    if cursor["way"] == "place":
        # An old row in front of the cursor, where the first pass does not come any more.
        db.sql("VACUUM inbound_events")
    db.sql("INSERT INTO inbound_events VALUES ('late', now() - interval '50 days')")
    if cursor["way"] == "place":
        ((block,),) = db.sql("SELECT (ctid::text::point)[0] FROM inbound_events WHERE id = 'late'")
        assert block < cursor["at"]
    sweeps = record_sweeps(monkeypatch)
    (result,) = await db.retention(EVENTS).tick()
    assert sweeps[0].start == cursor["at"] not in {0, "-infinity"}
    assert (result.status, result.deleted) == ("completed", ROWS + 1 - deleted)
    assert db.count("inbound_events") == 1


@pytest.mark.parametrize("how", ["stopped", "failed", "tried twice"])
async def test_manual_run_continues_at_the_cursor(
    full_db: RetentionDB, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Although each has its own scheduled time, and even if a run in between ended before its first row."""
    db = full_db
    result = await stop_during_run(db, db.retention(EVENTS), tick=False)
    assert "run it again, and it continues where it ended" in str(result.error)
    assert db.job_statuses()[-2:] == ["started", "stopped"]
    if how == "failed":
        db.sql("UPDATE retention_runs SET state = 'failed'")
    if how == "tried twice":
        db.sql(
            "INSERT INTO retention_runs (table_name, trigger, due_at, attempt, lease_until, horizon, state,"
            " finished_at, audit_id) SELECT 'inbound_events', 'manual', now(), 1, now(), now(), 'stopped',"
            " now(), audit_id FROM retention_runs"
        )
    ((cursor, deleted),) = db.sql("SELECT cursor, rows_deleted FROM retention_runs WHERE id = 1")
    sweeps = record_sweeps(monkeypatch)
    (result,) = await db.retention(EVENTS).run_now()
    assert sweeps[0].start == cursor["at"] not in {0, "-infinity"}
    assert (result.status, result.deleted) == ("completed", ROWS - deleted)
    assert db.count("inbound_events") == 1


@pytest.mark.parametrize("state", ["completed", "cancelled"])
async def test_manual_run_starts_over_after_a_completed_run(
    full_db: RetentionDB, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Rows that have become old may be anywhere."""
    db = full_db
    await stop_during_run(db, db.retention(EVENTS), tick=False)
    db.sql("UPDATE retention_runs SET state = %s", state)
    sweeps = record_sweeps(monkeypatch)
    await db.retention(EVENTS).run_now()
    assert sweeps[0].start in {0, "-infinity"}
    assert db.count("inbound_events") == 1


async def test_paused_manual_run_says_that_it_must_be_started_again(full_db: RetentionDB) -> None:
    """The schedule does not retry it."""
    retention = full_db.retention(EVENTS)
    result, _ = await act_during_run(
        retention, lambda: retention.operator.pause("inbound_events", by="ann"), tick=False
    )
    assert "`retention resume inbound_events`, then run it again; it continues where it" in str(result.error)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("VACUUM FULL inbound_events", id="vacuumed"),
        pytest.param("CLUSTER inbound_events USING inbound_events_pkey", id="clustered"),
        pytest.param("UPDATE retention_runs SET due_at = due_at - interval '30 s'", id="next scheduled time"),
    ],
)
async def test_table_is_swept_from_the_start_where_the_cursor_does_not_apply(
    full_db: RetentionDB, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The rows are elsewhere, or the next day's run covers the whole table."""
    db = full_db
    await stop_during_run(db, await db.overdue(EVENTS))
    db.sql(change)
    sweeps = record_sweeps(monkeypatch)
    (result,) = await db.retention(EVENTS).tick()
    assert sweeps[0].start in {0, "-infinity"}
    assert (result.status, db.count("inbound_events")) == ("completed", 1)


async def test_index_created_between_attempts_starts_over(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block number says nothing about ages."""
    db.limit_batches(blocks=16)
    db.make_table(indexed=False, old=ROWS)
    db.fill("inbound_events", 1, 1)
    await stop_during_run(db, await db.overdue(EVENTS))
    db.sql("CREATE INDEX ON inbound_events (received_at)")
    db.force_index_scans()
    sweeps = record_sweeps(monkeypatch)
    (result,) = await db.retention(EVENTS).tick()
    assert sweeps[0] == AgeRange()
    assert (result.status, db.count("inbound_events")) == ("completed", 1)


async def test_cancelled_run_is_not_retried(full_db: RetentionDB) -> None:
    """Run and command are audited; the next scheduled run deletes the rest."""
    db = full_db
    retention, operator = await db.overdue(EVENTS), db.retention(EVENTS).operator

    async def cancel() -> int:
        await operator.cancel("inbound_events", by="ann")
        return db.count("inbound_events")

    result, left = await act_during_run(retention, cancel)
    assert (result.status, db.count("inbound_events")) == ("cancelled", left)
    assert isinstance(result.error, RunCancelledError)
    assert db.sample("retention_runs_total", table="inbound_events", status="cancelled") == 1
    assert db.runs() == [(1, "cancelled", ROWS + 1 - left)]
    (entry,) = db.audit_payloads()
    assert (entry["status"], entry["deleted"]) == ("cancelled", ROWS + 1 - left)
    assert entry["error"]["message"].startswith("The run on inbound_events was cancelled by ann")
    assert db.sql("SELECT actor_id, payload FROM audit_log WHERE action = 'retention.cancel'") == [
        ("ann", {"run": 1})
    ]
    db.sql("UPDATE retention_runs SET finished_at = finished_at - interval '1 day'")
    assert await retention.tick() == []
    assert db.job_statuses()[-1] == "completed"
    db.schedule.time += timedelta(seconds=30)
    (result,) = await retention.tick()
    assert (result.status, db.count("inbound_events")) == ("completed", 1)


async def test_cancel_interrupts_a_wait_between_passes(db: RetentionDB) -> None:
    """Rows are locked, and the run would wait over a minute before its next pass."""
    db.tune(pass_waits=(timedelta(0), timedelta(seconds=100)))
    db.make_table(old=100)
    retention = db.retention(EVENTS)
    with psycopg.connect(db.urls.owner_url) as other:
        other.execute("SELECT FROM inbound_events WHERE id = '40-1' FOR UPDATE")
        run = asyncio.create_task(retention.run_now())
        await until(lambda: db.count("inbound_events") == 1)
        await retention.operator.cancel("inbound_events", by="ann")
        began = time.monotonic()
        (result,) = await run
    assert (result.status, result.deleted) == ("cancelled", 99)
    assert time.monotonic() - began < 30


async def test_a_cancelled_run_whose_process_died_is_closed_as_cancelled(db: RetentionDB) -> None:
    """It is not retried."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    db.sql(
        "INSERT INTO retention_runs (table_name, trigger, due_at, attempt, lease_until, horizon)"
        " VALUES ('inbound_events', 'schedule', %s, 1, now() + interval '0.2 s', now())",
        db.schedule.time,
    )
    await retention.operator.cancel("inbound_events", by="ann")
    await asyncio.sleep(0.3)
    (result,) = await retention.tick()
    assert (result.status, db.runs()) == ("cancelled", [(1, "cancelled", 0)])
    db.sql("UPDATE retention_runs SET finished_at = finished_at - interval '1 day'")
    assert await retention.tick() == []


async def test_pause_waits_for_a_claim_in_progress(db: RetentionDB) -> None:
    """The run that is being claimed is stopped too."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    with psycopg.connect(db.urls.owner_url) as conn:
        conn.execute(OPEN_RUN)
        pausing = asyncio.create_task(retention.operator.pause("inbound_events", by="ann"))
        done, _ = await asyncio.wait({pausing}, timeout=0.5)
        assert not done
        conn.commit()
    assert await pausing == 1
    assert db.sql("SELECT paused_by FROM retention_runs") == [("ann",)]


async def test_claim_waits_for_a_pause_in_progress(db: RetentionDB) -> None:
    """It has read that nothing is paused, and still claims nothing."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    with psycopg.connect(db.urls.url) as conn:
        conn.execute("SELECT FROM retention_policies FOR UPDATE")
        conn.execute("UPDATE retention_policies SET paused_at = now(), paused_by = 'ann'")
        ticking = asyncio.create_task(retention.tick())
        done, _ = await asyncio.wait({ticking}, timeout=0.5)
        assert not done
        conn.commit()
    assert await ticking == []
    assert db.runs() == []


async def test_resume_before_the_run_noticed_the_pause_lets_it_continue(db: RetentionDB) -> None:
    """A run that has not yet noticed its pause never stops for it."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    db.sql(OPEN_RUN)
    assert await retention.operator.pause("inbound_events", by="ann") == 1
    assert await retention.operator.resume("inbound_events", by="ann") == 1
    assert db.sql("SELECT paused_by FROM retention_runs") == [(None,)]


async def test_invalid_commands_are_refused(db: RetentionDB) -> None:
    """With a sentence each, and without an audit entry."""
    db.make_table()
    operator = db.retention(EVENTS).operator
    with pytest.raises(ConfigurationError, match=r"inbound_events is not paused"):
        await operator.resume("inbound_events", by="ann")
    with pytest.raises(ConfigurationError, match=r"inbound_events has no current run"):
        await operator.cancel("inbound_events", by="ann")
    with pytest.raises(ConfigurationError, match=r"Did you mean inbound_events"):
        await operator.pause("inbound_event", by="ann")
    with pytest.raises(ConfigurationError, match=r"Say who gives this command"):
        await operator.pause("inbound_events", by=" ")
    assert db.count("audit_log") == 0
    await operator.pause("inbound_events", by="ann")
    with pytest.raises(ConfigurationError, match=r"inbound_events is paused already, since .* by ann"):
        await operator.pause("inbound_events", by="bob")
    db.sql(OPEN_RUN)
    await operator.cancel("inbound_events", by="ann")
    with pytest.raises(ConfigurationError, match=r"Run 1 on inbound_events was cancelled already"):
        await operator.cancel("inbound_events", by="ann")
    assert db.sql("SELECT actor_id, action FROM audit_log ORDER BY id") == [
        ("ann", "retention.pause"),
        ("ann", "retention.cancel"),
    ]


async def test_run_reports_its_progress(full_db: RetentionDB) -> None:
    """Rows so far and in total, rows per second, and the time left."""
    db = full_db
    retention, watcher = await db.overdue(EVENTS), db.retention(EVENTS)
    _, (status,) = await act_during_run(retention, watcher.status)
    last = status.last
    assert last.state == "running"
    assert last.planned == pytest.approx(ROWS, rel=0.1)
    assert 0 < last.deleted < ROWS
    assert last.rate(status.now) > 0
    assert last.left(status.now) > timedelta(0)
    assert last.waiting is None


async def test_run_that_fails_before_it_noticed_its_cancel_is_cancelled(db: RetentionDB) -> None:
    """The operator was promised that it is not retried."""
    db.make_table(old=5)

    class Full(FolderArchive):
        async def write(self, table: str, run: int, data: bytes) -> Location:  # noqa: ARG002 - the interface
            db.sql("UPDATE retention_runs SET cancelled_by = 'ann' WHERE state = 'running'")
            raise ArchiveError("full")

    retention = await db.overdue(ARCHIVED, archive=Full(db.folder / "archive"))
    (result,) = await retention.tick()
    assert (result.status, type(result.error)) == ("cancelled", RunCancelledError)
    db.sql("UPDATE retention_runs SET finished_at = now() - interval '1 hour'")
    assert await db.retention(ARCHIVED).tick() == []
    assert db.runs() == [(1, "cancelled", 0)]


async def test_paused_run_of_a_dead_process_continues_after_resume(db: RetentionDB) -> None:
    """It is closed as stopped, not failed, so the next attempt does not wait."""
    db.make_table(old=5)
    retention = await db.overdue(EVENTS)
    await retention._ledger.claim_scheduled(EVENTS, db.schedule.time)
    await retention.operator.pause("inbound_events", by="ann")
    db.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s'")
    assert [result.status for result in await db.retention(EVENTS).tick()] == ["stopped"]
    await retention.operator.resume("inbound_events", by="ann")
    assert [result.status for result in await db.retention(EVENTS).tick()] == ["completed"]
    assert db.runs() == [(1, "stopped", 0), (2, "completed", 5)]

"""The ledger: one run over all replicas, leases, and no deleted row without its audit entry."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.archive import ARCHIVED
from support.lines import LineList
from support.postgres import PostgresServer
from support.retention import EVENTS, SESSIONS, OnDeleted, RetentionDB, close_run_as_peer
from watchkeeper.database import Database
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.logs import Redactor
from watchkeeper.logs._logging import Logging
from watchkeeper.metrics import Registry
from watchkeeper.retention import FolderArchive, Retention
from watchkeeper.retention._metrics import RetentionMetrics
from watchkeeper.retention.ledger._interrupts import RunInterruptedError, RunLostError
from watchkeeper.retention.ledger._ledger import Ledger


def leave_a_run_open(db: RetentionDB, *, lapsed: bool = True) -> None:
    """Write the ledger as a process leaves it that was killed during a run, after seven rows."""
    db.sql(
        "INSERT INTO retention_runs (table_name, trigger, due_at, attempt, lease_until, horizon,"
        " rows_deleted) VALUES ('inbound_events', 'schedule', %s, 1, now() + %s,"
        " now() - interval '30 days', 7)",
        db.schedule.time,
        timedelta(minutes=-1 if lapsed else 1),
    )


async def test_concurrent_registration_does_not_deadlock(db: RetentionDB) -> None:
    """Whatever the order of the policies, ten first starts register them once."""
    orders = [db.retention(*policies) for policies in [(EVENTS, SESSIONS), (SESSIONS, EVENTS)] * 5]
    await asyncio.gather(*(retention.register() for retention in orders))
    assert db.count("retention_policies") == 2


async def test_run_of_a_dead_process_is_closed_and_audited(db: RetentionDB) -> None:
    """Another process closes it as failed, with the ledger's rows and duration, and counts no row twice."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    leave_a_run_open(db)
    db.sql("UPDATE retention_runs SET started_at = now() - interval '90 s'")
    (result,) = await retention.tick()
    assert (result.status, result.deleted, result.run) == ("failed", 7, 1)
    assert round(result.duration.total_seconds()) == 90
    assert db.runs() == [(1, "failed", 7)]
    (entry,) = db.audit_payloads()
    assert (entry["deleted"], entry["run"], entry["status"]) == (7, 1, "failed")
    assert entry["error"]["message"].startswith("interrupted: its process did not renew the lease")
    assert db.job_statuses() == ["scheduled", "failed"]
    assert db.lines("retention")[0]["duration"] == pytest.approx(90_000, abs=900)
    assert entry["duration_ms"] == pytest.approx(90_000, abs=900)
    seconds = db.sample("retention_run_duration_seconds_sum", table="inbound_events")
    assert seconds == pytest.approx(90, abs=0.9)
    assert db.sample("retention_runs_total", table="inbound_events", status="failed") == 1
    assert db.sample("retention_rows_deleted_total", table="inbound_events") == 0


@pytest.mark.parametrize(
    ("trigger", "rest"),
    [
        ("schedule", "the rest is left to the next attempt, or to the next scheduled run"),
        ("manual", "run it again, or leave the rest to the next scheduled run"),
    ],
)
async def test_interrupted_run_says_whether_it_is_retried(db: RetentionDB, trigger: str, rest: str) -> None:
    """A scheduled run is retried, a manual one is not."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    leave_a_run_open(db)
    db.sql("UPDATE retention_runs SET trigger = %s", trigger)
    await retention.tick()
    assert db.audit_payloads()[0]["error"]["message"].endswith(
        f"the rows that it deleted are counted; {rest}"
    )


async def test_live_run_is_left_alone(db: RetentionDB) -> None:
    """Within its lease no other process closes it or runs the policy, not even manually."""
    db.make_table(old=3)
    retention = await db.overdue(EVENTS)
    leave_a_run_open(db, lapsed=False)
    assert await retention.tick() == []
    (result,) = await retention.run_now()
    assert (result.status, result.run) == ("failed", None)
    assert "inbound_events is being pruned already (run 1, since" in str(result.error)
    assert db.count("inbound_events") == 3


async def test_a_lapsed_run_is_closed_once(db: RetentionDB) -> None:
    """Of ten replicas that find it, one writes the entry."""
    db.make_table()
    await db.overdue(EVENTS)
    replicas = [db.retention(EVENTS) for _ in range(10)]
    leave_a_run_open(db)
    await asyncio.gather(*(replica.tick() for replica in replicas))
    assert len(db.audit_payloads()) == 1


async def test_run_that_renews_its_lease_in_time_is_not_closed(db: RetentionDB) -> None:
    """The lease is checked again under the lock."""
    db.make_table()
    await db.overdue(EVENTS)
    leave_a_run_open(db)
    ledger = Ledger(db.database, redact=str)
    (claim,) = await ledger.find_lapsed()
    assert claim.id == 1
    await ledger.renew(claim)
    assert await ledger.close_lapsed(claim, RunInterruptedError("it went away")) is None
    assert db.runs() == [(1, "running", 7)]


@pytest.mark.parametrize("rows", [5000, 10], ids=["in the middle", "at its end"])
async def test_process_that_lost_its_run_deletes_nothing_more(db: RetentionDB, rows: int) -> None:
    """A process frozen for longer than its lease finds its run closed, and stops."""
    db.force_index_scans()
    db.make_table(old=rows)

    def freeze(_table: str, _rows: int) -> None:
        if not db.audit_payloads():
            db.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s'")
            close_run_as_peer(db)

    (result,) = await db.retention(EVENTS).run_now(observer=OnDeleted(freeze))
    assert (result.status, result.left_open) == ("failed", True)
    assert isinstance(result.error, RunLostError)
    gone = rows - db.count("inbound_events")
    assert gone == min(rows, 1000)  # one transaction
    assert [entry["deleted"] for entry in db.audit_payloads()] == [gone]


async def test_run_does_not_start_if_it_cannot_be_audited(db: RetentionDB) -> None:
    """A claim tries the entry; with the audit log closed that is reported once."""
    db.make_table(old=3)
    retention = await db.overdue(EVENTS)
    db.sql("REVOKE INSERT (actor_type) ON audit_log FROM keeper")
    (result,) = await retention.tick()
    assert (result.status, result.run) == ("failed", None)
    assert "inbound_events is not pruned, because its audit entry cannot be written" in str(result.error)
    assert await retention.tick() == []
    assert db.count("inbound_events") == 3
    assert db.runs() == []
    db.sql("GRANT INSERT (actor_type) ON audit_log TO keeper")
    assert [result.deleted for result in await db.retention(EVENTS).tick()] == [3]


async def test_audit_log_that_discards_entries_stops_retention(db: RetentionDB) -> None:
    """A rule that discards inserts is detected before a row is deleted."""
    db.make_table(old=3)
    db.sql("CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    db.sql("CREATE TRIGGER swallow BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION swallow()")
    (result,) = await db.retention(EVENTS).run_now()
    assert "its audit entry cannot be written: The database stored no entry" in str(result.error)
    assert db.count("inbound_events") == 3


async def test_stored_errors_are_redacted(db: RetentionDB) -> None:
    """In the ledger and in the audit log."""
    db.make_table(old=3)
    db.sql(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION E'no crm"
        " with password=canary-one\\nAuthorization: canary-two canary-three\\nat marmot-depot:5432'; END$$"
    )
    db.sql("CREATE TRIGGER tell BEFORE DELETE ON inbound_events FOR EACH ROW EXECUTE FUNCTION tell()")
    retention = Retention(
        db.database,
        [EVENTS],
        schedule=db.schedule,
        metrics=RetentionMetrics(Registry(), [EVENTS]),
        logging=Logging(service="test", env="test", sink=LineList(), redactor=Redactor(["marmot-depot"])),
    )
    await retention.run_now()
    ((kept,),) = db.sql("SELECT error ->> 'message' FROM retention_runs")
    (entry,) = db.audit_payloads()
    assert entry["error"]["message"] == kept
    assert kept.startswith("no crm with password=*** Authorization: *** at ***:5432")
    assert "canary" not in kept
    assert "marmot" not in kept


async def test_run_that_cannot_be_closed_blocks_its_policy(db: RetentionDB) -> None:
    """Until its audit entry is written, which is reported once."""
    db.make_table(old=3)
    retention = await db.overdue(EVENTS)
    leave_a_run_open(db)
    db.schedule.time += timedelta(seconds=30)  # another day
    db.sql("REVOKE INSERT (actor_type) ON audit_log FROM keeper")
    (result,) = await retention.tick()
    assert isinstance(result.error, psycopg.errors.InsufficientPrivilege)
    assert await retention.tick() == []
    assert db.sample("retention_runs_total", table="inbound_events", status="failed") == 1
    assert db.sample("retention_run_duration_seconds_count", table="inbound_events") == 0  # not over yet
    assert (db.count("inbound_events"), db.runs()) == (3, [(1, "running", 7)])
    db.sql("GRANT INSERT (actor_type) ON audit_log TO keeper")
    assert [(r.status, r.deleted) for r in await retention.tick()] == [("failed", 7), ("completed", 3)]


async def test_run_whose_final_entry_fails_stays_open(db: RetentionDB) -> None:
    """The ledger has the count, and a later check writes the entry."""
    db.make_table(old=3)
    retention = db.retention(EVENTS, lease=timedelta(milliseconds=1))
    revoke = "REVOKE INSERT (actor_type) ON audit_log FROM keeper"
    (result,) = await retention.run_now(observer=OnDeleted(lambda *_: db.sql(revoke)))
    assert (result.status, result.deleted, result.left_open) == ("failed", 3, True)
    assert db.runs() == [(1, "running", 3)]
    db.sql("GRANT INSERT (actor_type) ON audit_log TO keeper")
    await asyncio.sleep(0.01)
    await retention.tick()
    assert [entry["deleted"] for entry in db.audit_payloads()] == [3]
    assert db.sample("retention_runs_total", table="inbound_events", status="failed") == 1
    assert db.sample("retention_rows_deleted_total", table="inbound_events") == 3  # as they went


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE retention_runs SET state = 'completed', finished_at = now()",
        "UPDATE retention_runs SET state = 'completed', audit_id = 1",
        "UPDATE retention_runs SET audit_id = 1",
    ],
)
async def test_database_refuses_a_closed_run_without_its_entry(db: RetentionDB, statement: str) -> None:
    """Whatever the code does."""
    db.make_table()
    await db.overdue(EVENTS)
    leave_a_run_open(db)
    with pytest.raises(psycopg.errors.CheckViolation, match="retention_runs"):
        db.sql(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM retention_runs",
        "DELETE FROM retention_policies",
        "UPDATE retention_runs SET horizon = now()",
        "UPDATE retention_runs SET started_at = now()",
        "UPDATE retention_policies SET since = now()",
    ],
)
async def test_service_role_cannot_change_closed_runs(db: RetentionDB, statement: str) -> None:
    """It may move counts and close runs, and nothing else."""
    async with db.database.connection() as conn:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            await conn.execute(statement.encode())


async def test_service_role_cannot_change_finished_rows(db: RetentionDB) -> None:
    """It may change a run while open, an archive until its rows are deleted, and a hold until released."""
    db.make_table(old=5)
    retention = db.retention(ARCHIVED)
    (result,) = await retention.run_now()
    db.fill("inbound_events", 41, 5)
    hold = await retention.operator.hold("inbound_events", [], reason="case 7", owner="legal")
    await retention.operator.release(hold.id, released_by="ann")
    await retention.operator.restore(result.run or 0, restored_by="ann")
    leave_a_run_open(db, lapsed=False)
    for statement in (
        "UPDATE retention_runs SET rows_deleted = 0, error = NULL WHERE state = 'completed'",
        "UPDATE retention_runs SET state = 'running', audit_id = NULL, finished_at = NULL WHERE id = 1",
        "UPDATE retention_runs SET rows_deleted = 6 WHERE state = 'running'",
        "UPDATE retention_archives SET deleted = 0, kept = '{0,1,2,3,4}'",
        "UPDATE retention_archives SET restored_at = NULL",
        "UPDATE retention_holds SET released_by = 'bob'",
        "UPDATE retention_runs SET partitions = '{x}'",
    ):
        async with db.database.connection() as conn:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await conn.execute(statement.encode())
    db.sql("UPDATE retention_runs SET error = NULL")  # the owner may


async def test_locked_policy_does_not_block_the_others(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own run starts later; a manual run reports the lock."""
    db.make_contract_tables()
    retention = await db.overdue()
    monkeypatch.setattr("watchkeeper.retention.ledger._ledger._CLAIM_WAIT", timedelta(milliseconds=100))
    with psycopg.connect(db.urls.owner_url) as other:
        other.execute("SELECT FROM retention_policies WHERE table_name = 'inbound_events' FOR UPDATE")
        assert [result.table for result in await retention.tick()] == ["chat_sessions"]
        (result,) = await retention.run_now(["inbound_events"])
        assert "an operator command has locked its policy" in str(result.error)
        other.rollback()
    assert [(result.table, result.deleted) for result in await retention.tick()] == [("inbound_events", 3)]


async def test_error_with_invalid_text_is_stored(db: RetentionDB) -> None:
    """PostgreSQL takes no lone surrogates and no NUL, and the run must be closed."""
    db.make_table(old=5)
    (db.folder / "file").write_text("")
    folder = Path(os.fsdecode(os.fsencode(db.folder) + b"/file/\xff"))
    (result,) = await db.retention(ARCHIVED, archive=FolderArchive(folder)).run_now()
    assert (result.status, result.left_open) == ("failed", False)
    assert "\\udcff" in db.audit_payloads()[0]["error"]["message"]


async def test_claim_without_a_database_is_reported_and_retried(db: RetentionDB) -> None:
    """Only that is reported, and a later check continues."""
    db.make_contract_tables()
    retention = await db.overdue()
    await db.database.close()
    for call in (retention.tick, retention.run_now, retention.plan, retention.status):
        with pytest.raises(DatabaseUnavailableError, match="not open"):
            await call()
    await db.database.open()
    assert [result.deleted for result in await retention.tick()] == [3, 2]


async def test_run_survives_a_server_restart(
    private_db: RetentionDB, postgres_private: PostgresServer
) -> None:
    """It continues, and its count is exact."""
    db = private_db
    db.make_table(old=6000)
    restarted = False

    def restart(_table: str, _rows: int) -> None:
        nonlocal restarted
        if not restarted:
            restarted = True
            db.close()
            postgres_private.stop()
            postgres_private.start()

    (result,) = await db.retention(EVENTS).run_now(observer=OnDeleted(restart))
    db.reconnect()
    assert (restarted, result.status, result.deleted) == (True, "completed", 6000)
    assert [entry["deleted"] for entry in db.audit_payloads()] == [6000]
    assert db.count("inbound_events") == 0


async def test_run_is_closed_after_an_outage_at_its_end(
    private_db: RetentionDB, postgres_private: PostgresServer
) -> None:
    """As soon as the server is back."""
    db = private_db
    db.make_table(old=10)

    def stop(_table: str, _rows: int) -> None:
        db.close()
        postgres_private.stop()
        asyncio.get_running_loop().call_later(0.5, postgres_private.start)

    (result,) = await db.retention(EVENTS).run_now(observer=OnDeleted(stop))
    db.reconnect()
    assert (result.status, result.deleted, result.left_open) == ("completed", 10, False)
    assert [entry["deleted"] for entry in db.audit_payloads()] == [10]


@pytest.mark.parametrize("then", ["goes on", "stops"])
async def test_unacknowledged_commit_is_counted(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Metrics and progress follow the ledger, even when it was the run's last commit."""
    db.make_table(old=10)
    retention = db.retention(EVENTS)
    transaction, move = Database.transaction, Ledger.record_deleted
    deleting, lost = False, False

    @asynccontextmanager
    async def unanswered(self: Database, **options: Any) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        nonlocal lost
        async with transaction(self, **options) as conn:
            yield conn
        if deleting and not lost:
            lost = True
            if then == "stops":
                retention.interrupt()
            raise DatabaseUnavailableError("The connection to the database was lost.")

    async def note(self: Ledger, conn: Any, claim: Any, deleted: int, *rest: Any) -> int:
        nonlocal deleting
        deleting = deleting or deleted > 0
        return await move(self, conn, claim, deleted, *rest)

    monkeypatch.setattr(Database, "transaction", unanswered)
    monkeypatch.setattr(Ledger, "record_deleted", note)
    counted: list[int] = []
    (result,) = await retention.run_now(observer=OnDeleted(lambda _, rows: counted.append(rows)))
    assert lost
    assert (result.status, result.deleted) == ("completed" if then == "goes on" else "stopped", 10)
    assert counted == [10]
    assert db.sample("retention_rows_deleted_total", table="inbound_events") == 10
    assert [entry["deleted"] for entry in db.audit_payloads()] == [10]

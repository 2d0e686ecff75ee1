"""The ledger: one run over all replicas, leases, and no row without its audit entry."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from support.archive import ARCHIVED
from support.house import EVENTS, SESSIONS, House, close_as_another_would, look_up_rows, open_house
from support.lines import LineList
from watchkeeper.database import Database
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.logs import Logging, Redactor
from watchkeeper.metrics import Registry
from watchkeeper.retention import (
    FolderArchive,
    Ledger,
    Retention,
    RetentionMetrics,
    RunInterruptedError,
    RunLostError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.postgres import DatabaseUrls, PostgresServer


@pytest.fixture
async def house(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[House]:
    """A database to keep."""
    async with open_house(database_urls, tmp_path) as opened:
        yield opened


@pytest.fixture
async def private_house(postgres_private: PostgresServer, tmp_path: Path) -> AsyncIterator[House]:
    """A database on a server that the test may stop."""
    urls = postgres_private.create_database("wk_template")
    async with open_house(urls, tmp_path) as opened:
        yield opened


def leave_a_run_open(house: House, *, deleted: int = 7, lapsed: bool = True) -> int:
    """Write the ledger as a process leaves it that was killed in the middle of a run."""
    house.sql("UPDATE retention_policies SET since = now() - interval '10 days'")
    ((run,),) = house.sql(
        "INSERT INTO retention_runs"
        " (table_name, trigger, due_at, attempt, lease_until, horizon, rows_deleted) VALUES"
        " ('inbound_events', 'schedule', %s, 1, now() + %s, now() - interval '30 days', %s) RETURNING id",
        house.calendar.due,
        timedelta(minutes=-1 if lapsed else 1),
        deleted,
    )
    return int(run)


async def test_five_replicas_run_each_policy_once(house: House) -> None:
    """Started together, on connections of their own, they delete each row once and audit each table once."""
    house.make_both()
    house.fill("inbound_events", 45, 4000)
    await house.due()
    databases = [Database(house.urls.url) for _ in range(5)]
    try:
        await asyncio.gather(*(database.open() for database in databases))
        replicas = [house.retention(database=database) for database in databases]
        results = await asyncio.gather(*(replica.tick() for replica in replicas))
    finally:
        await asyncio.gather(*(database.close() for database in databases))
    done = sorted((result.table, result.status, result.deleted) for some in results for result in some)
    assert done == [("chat_sessions", "completed", 2), ("inbound_events", "completed", 4003)]
    assert [entry["deleted"] for entry in house.audited("inbound_events")] == [4003]
    assert [entry["deleted"] for entry in house.audited("chat_sessions")] == [2]
    assert house.sample("retention_rows_deleted_total", table="inbound_events") == 4003


async def test_replicas_that_register_together_do_not_wait_in_a_circle(house: House) -> None:
    """However the policies are ordered, ten first starts are ten registrations and one since."""
    orders = [house.retention(*policies) for policies in [(EVENTS, SESSIONS), (SESSIONS, EVENTS)] * 5]
    await asyncio.gather(*(retention.register() for retention in orders))
    assert house.count("retention_policies") == 2


async def test_a_run_whose_process_went_away_is_closed_and_audited(house: House) -> None:
    """Who finds it closes it as failed; what it had deleted is in its entry, and the job says so."""
    house.make_table()
    retention = house.retention(EVENTS)
    await retention.register()
    run = leave_a_run_open(house, deleted=7)
    (result,) = await retention.tick()
    assert (result.status, result.deleted, result.run) == ("failed", 7, run)
    assert house.runs() == [(1, "failed", 7)]
    (entry,) = house.audited()
    assert (entry["deleted"], entry["run"], entry["status"]) == (7, run, "failed")
    assert entry["error"]["message"].startswith("interrupted: the process that ran it")
    assert house.job() == ["scheduled", "failed"]
    assert house.sample("retention_runs_total", table="inbound_events", status="failed") == 1


async def test_who_closes_a_run_tells_how_long_it_took(house: House) -> None:
    """Line and histogram have the ledger's duration; the rows were counted where they went, not twice."""
    house.make_table()
    retention = house.retention(EVENTS)
    await retention.register()
    run = leave_a_run_open(house, deleted=7)
    house.sql("UPDATE retention_runs SET started_at = now() - interval '90 s'")
    (result,) = await retention.tick()
    assert (result.run, round(result.duration.total_seconds())) == (run, 90)
    (line,) = house.lines("retention")
    assert line["duration"] == pytest.approx(90_000, abs=900)
    assert house.audited()[0]["duration_ms"] == pytest.approx(line["duration"], abs=1)
    assert house.sample("retention_run_duration_seconds_sum", table="inbound_events") == pytest.approx(
        90, abs=0.9
    )
    assert house.sample("retention_rows_deleted_total", table="inbound_events") == 0


@pytest.mark.parametrize(
    ("trigger", "rest"),
    [
        ("schedule", "the rest is left to the next attempt, or to the next due"),
        ("manual", "run it again, or leave the rest to the next due"),
    ],
)
async def test_an_interrupted_run_says_what_becomes_of_the_rest(
    house: House, trigger: str, rest: str
) -> None:
    """What was scheduled is tried again; an operator's run is not, and that is what its error says."""
    house.make_table()
    retention = house.retention(EVENTS)
    await retention.register()
    leave_a_run_open(house)
    house.sql("UPDATE retention_runs SET trigger = %s", trigger)
    await retention.tick()
    assert house.audited()[0]["error"]["message"].endswith(f"what it deleted is counted; {rest}")


async def test_a_run_that_was_interrupted_is_tried_again(house: House) -> None:
    """A minute later its due has its second attempt."""
    house.make_table()
    house.fill("inbound_events", 40, 3)
    retention = house.retention(EVENTS)
    await retention.register()
    leave_a_run_open(house)
    await retention.tick()
    house.sql("UPDATE retention_runs SET finished_at = finished_at - interval '1 min'")
    assert [result.deleted for result in await retention.tick()] == [3]
    assert house.runs() == [(1, "failed", 7), (2, "completed", 3)]


async def test_a_run_that_is_alive_is_left_alone(house: House) -> None:
    """Within its lease nobody closes it, and nobody else runs the policy, not even the operator."""
    house.make_table()
    house.fill("inbound_events", 40, 3)
    retention = house.retention(EVENTS)
    await retention.register()
    leave_a_run_open(house, lapsed=False)
    assert await retention.tick() == []
    (result,) = await retention.run_now()
    assert (result.status, result.run) == ("failed", None)
    assert "inbound_events is being pruned already (run 1, since" in str(result.error)
    assert house.count("inbound_events") == 3


async def test_a_lapsed_run_is_closed_once(house: House) -> None:
    """Of ten replicas that find it, one writes the entry."""
    house.make_table()
    replicas = [house.retention(EVENTS) for _ in range(10)]
    await replicas[0].register()
    leave_a_run_open(house)
    await asyncio.gather(*(replica.tick() for replica in replicas))
    assert len(house.audited()) == 1


async def test_a_run_that_shows_a_sign_of_life_in_time_is_not_closed(house: House) -> None:
    """The lease is looked at again behind the lock."""
    house.make_table()
    await house.retention(EVENTS).register()
    run = leave_a_run_open(house)
    ledger = Ledger(house.database, redact=str)
    (claim,) = await ledger.lapsed()
    assert claim.id == run
    await ledger.renew(claim)
    assert await ledger.close_lapsed(claim, RunInterruptedError("it went away")) is None
    assert house.runs() == [(1, "running", 7)]


@pytest.mark.parametrize("rows", [5000, 10], ids=["in the middle", "at its end"])
async def test_who_lost_a_run_deletes_nothing_more(
    house: House, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """A process that was frozen for longer than its lease finds its run closed, and stops."""
    look_up_rows(monkeypatch)
    house.make_table()
    house.fill("inbound_events", 40, rows)

    def freeze(_table: str, _rows: int) -> None:
        if not house.audited():
            house.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s'")
            close_as_another_would(house)

    (result,) = await house.retention(EVENTS).run_now(None, freeze)
    assert (result.status, result.left_open) == ("failed", True)
    assert isinstance(result.error, RunLostError)
    gone = rows - house.count("inbound_events")
    assert gone == min(rows, 1000)  # one transaction
    assert [entry["deleted"] for entry in house.audited()] == [gone]


async def test_nothing_is_deleted_that_could_not_be_audited(house: House) -> None:
    """Claiming tries the entry: with the audit log closed no run starts, and that is told once."""
    house.make_table()
    house.fill("inbound_events", 40, 3)
    retention = await house.due(EVENTS)
    house.sql("REVOKE INSERT (actor_type) ON audit_log FROM keeper")
    (result,) = await retention.tick()
    assert (result.status, result.run) == ("failed", None)
    assert "inbound_events is not pruned, because its audit entry cannot be written" in str(result.error)
    assert await retention.tick() == []
    assert house.count("inbound_events") == 3
    assert house.runs() == []
    house.sql("GRANT INSERT (actor_type) ON audit_log TO keeper")
    assert [result.deleted for result in await house.retention(EVENTS).tick()] == [3]


async def test_an_audit_log_that_swallows_entries_stops_retention(house: House) -> None:
    """A rule that keeps nothing of what is inserted is found out before a row goes."""
    house.make_table()
    house.fill("inbound_events", 40, 3)
    house.sql("CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    house.sql("CREATE TRIGGER swallow BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION swallow()")
    (result,) = await house.retention(EVENTS).run_now()
    assert "its audit entry cannot be written: The database kept no entry" in str(result.error)
    assert house.count("inbound_events") == 3


async def test_an_error_keeps_no_secret(house: House) -> None:
    """What a trigger's error says is masked where it is kept for good: in the ledger and in the audit log."""
    house.make_table()
    house.fill("inbound_events", 40, 3)
    house.sql(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION E'no crm"
        " with password=canary-one\\nAuthorization: canary-two canary-three\\nat marmot-depot:5432'; END$$"
    )
    house.sql("CREATE TRIGGER tell BEFORE DELETE ON inbound_events FOR EACH ROW EXECUTE FUNCTION tell()")
    retention = Retention(
        house.database,
        [EVENTS],
        schedule=house.calendar,
        metrics=RetentionMetrics(Registry(), [EVENTS]),
        logging=Logging(service="house", env="test", sink=LineList(), redactor=Redactor(["marmot-depot"])),
    )
    await retention.run_now()
    ((kept,),) = house.sql("SELECT error ->> 'message' FROM retention_runs")
    (entry,) = house.audited()
    assert entry["error"]["message"] == kept
    assert kept.startswith("no crm with password=*** Authorization: *** at ***:5432")
    assert "canary" not in kept
    assert "marmot" not in kept


async def test_a_run_that_cannot_be_closed_holds_its_policy_up(house: House) -> None:
    """While an ended run lacks its audit entry its policy does not run; that is told once."""
    house.make_table()
    house.fill("inbound_events", 40, 3)
    retention = house.retention(EVENTS)
    await retention.register()
    leave_a_run_open(house)
    house.calendar.due += timedelta(seconds=30)  # another day
    house.sql("REVOKE INSERT (actor_type) ON audit_log FROM keeper")
    (result,) = await retention.tick()
    assert isinstance(result.error, psycopg.errors.InsufficientPrivilege)
    assert await retention.tick() == []
    assert house.sample("retention_runs_total", table="inbound_events", status="failed") == 1
    assert house.sample("retention_run_duration_seconds_count", table="inbound_events") == 0  # not over yet
    assert (house.count("inbound_events"), house.runs()) == (3, [(1, "running", 7)])
    house.sql("GRANT INSERT (actor_type) ON audit_log TO keeper")
    assert [(r.status, r.deleted) for r in await retention.tick()] == [("failed", 7), ("completed", 3)]


async def test_a_run_whose_entry_fails_at_the_end_stays_open(house: House) -> None:
    """The rows are gone, the ledger says how many, and the next look writes the entry."""
    house.make_table()
    house.fill("inbound_events", 40, 3)
    retention = house.retention(EVENTS, lease=timedelta(milliseconds=1))

    def revoke(_table: str, _rows: int) -> None:
        house.sql("REVOKE INSERT (actor_type) ON audit_log FROM keeper")

    (result,) = await retention.run_now(None, revoke)
    assert (result.status, result.deleted, result.left_open) == ("failed", 3, True)
    assert house.runs() == [(1, "running", 3)]
    house.sql("GRANT INSERT (actor_type) ON audit_log TO keeper")
    await asyncio.sleep(0.01)
    await retention.tick()
    assert [entry["deleted"] for entry in house.audited()] == [3]
    assert house.sample("retention_runs_total", table="inbound_events", status="failed") == 1
    assert house.sample("retention_rows_deleted_total", table="inbound_events") == 3  # as they went


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE retention_runs SET state = 'completed', finished_at = now()",
        "UPDATE retention_runs SET state = 'completed', audit_id = 1",
        "UPDATE retention_runs SET audit_id = 1",
    ],
)
async def test_the_database_refuses_a_closed_run_without_its_entry(house: House, statement: str) -> None:
    """Closing without an audit entry is not possible, whatever the code does."""
    house.make_table()
    await house.retention(EVENTS).register()
    leave_a_run_open(house)
    with pytest.raises(psycopg.errors.CheckViolation, match="retention_runs"):
        house.sql(statement)


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
async def test_the_service_cannot_rewrite_the_past(house: House, statement: str) -> None:
    """Its role moves counts and closes runs, and that is all."""
    async with house.database.connection() as conn:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            await conn.execute(statement.encode())


async def test_the_service_cannot_rewrite_what_is_over(house: House) -> None:
    """Its role writes a run while it is open, an archive until its rows went, a hold until it is released."""
    house.make_table()
    house.fill("inbound_events", 40, 5)
    retention = house.retention(ARCHIVED)
    (result,) = await retention.run_now()
    house.fill("inbound_events", 41, 5)
    hold = await retention.operator.hold("inbound_events", [], reason="case 7", owner="legal")
    await retention.operator.release(hold.id, released_by="ann")
    await retention.operator.restore(result.run or 0, restored_by="ann")
    leave_a_run_open(house, deleted=7, lapsed=False)
    for statement in (
        "UPDATE retention_runs SET rows_deleted = 0, error = NULL WHERE state = 'completed'",
        "UPDATE retention_runs SET state = 'running', audit_id = NULL, finished_at = NULL WHERE id = 1",
        "UPDATE retention_runs SET rows_deleted = 6 WHERE state = 'running'",
        "UPDATE retention_archives SET deleted = 0, kept = '{0,1,2,3,4}'",
        "UPDATE retention_archives SET restored_at = NULL",
        "UPDATE retention_holds SET released_by = 'bob'",
        "UPDATE retention_runs SET partitions = '{x}'",
    ):
        async with house.database.connection() as conn:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await conn.execute(statement.encode())
    house.sql("UPDATE retention_runs SET error = NULL")  # the owner may


async def test_a_policy_that_is_locked_for_long_keeps_no_other_from_its_run(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a restore: its run begins at a later look, an operator is told."""
    monkeypatch.setattr("watchkeeper.retention.ledger._ledger._CLAIM_WAIT_MS", "100")
    house.make_both()
    retention = await house.due()
    with psycopg.connect(house.urls.owner_url) as other:
        other.execute("SELECT FROM retention_policies WHERE table_name = 'inbound_events' FOR UPDATE")
        assert [result.table for result in await retention.tick()] == ["chat_sessions"]
        (result,) = await retention.run_now(["inbound_events"])
        assert "an operator's command has its policy locked" in str(result.error)
        other.rollback()
    assert [(result.table, result.deleted) for result in await retention.tick()] == [("inbound_events", 3)]


async def test_an_error_that_is_no_text_is_told_all_the_same(house: House) -> None:
    """PostgreSQL takes no lone surrogates and no NUL, and the run is to be closed."""
    house.make_table()
    house.fill("inbound_events", 40, 5)
    (house.folder / "file").write_text("")
    folder = Path(os.fsdecode(os.fsencode(house.folder) + b"/file/\xff"))
    (result,) = await house.retention(ARCHIVED, archive=FolderArchive(folder)).run_now()
    assert (result.status, result.left_open) == ("failed", False)
    assert "\\udcff" in house.audited()[0]["error"]["message"]


async def test_a_claim_needs_the_database(house: House) -> None:
    """Without it a look says so and nothing else, and the look after it goes on."""
    house.make_both()
    retention = await house.due()
    await house.database.close()
    for call in (retention.tick, retention.run_now, retention.plan, retention.status):
        with pytest.raises(DatabaseUnavailableError, match="not open"):
            await call()
    await house.database.open()
    assert [result.deleted for result in await retention.tick()] == [3, 2]


async def test_an_outage_in_the_middle_of_a_run_is_sat_out(
    private_house: House, postgres_private: PostgresServer
) -> None:
    """The server is stopped and started again while rows go: the run goes on, and its count is exact."""
    house = private_house
    house.make_table()
    house.fill("inbound_events", 40, 6000)
    restarted = False

    def restart(_table: str, _rows: int) -> None:
        nonlocal restarted
        if not restarted:
            restarted = True
            house.close()
            postgres_private.stop()
            postgres_private.start()

    (result,) = await house.retention(EVENTS).run_now(None, restart)
    house.reconnect()
    assert (restarted, result.status, result.deleted) == (True, "completed", 6000)
    assert [entry["deleted"] for entry in house.audited()] == [6000]
    assert house.count("inbound_events") == 0


async def test_an_outage_at_the_end_of_a_run_is_sat_out(
    private_house: House, postgres_private: PostgresServer
) -> None:
    """The server is away when the run is to be closed: it is closed a moment later."""
    house = private_house
    house.make_table()
    house.fill("inbound_events", 40, 10)

    def stop(_table: str, _rows: int) -> None:
        house.close()
        postgres_private.stop()
        asyncio.get_running_loop().call_later(0.5, postgres_private.start)

    (result,) = await house.retention(EVENTS).run_now(None, stop)
    house.reconnect()
    assert (result.status, result.deleted, result.left_open) == ("completed", 10, False)
    assert [entry["deleted"] for entry in house.audited()] == [10]


@pytest.mark.parametrize("then", ["goes on", "stops"])
async def test_a_commit_that_was_not_answered_is_counted(
    house: House, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Its rows are in the ledger: metrics and progress follow that, also when the run ends with it."""
    house.make_table()
    house.fill("inbound_events", 40, 10)
    retention = house.retention(EVENTS)
    transaction, move = Database.transaction, Ledger.move
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
    monkeypatch.setattr(Ledger, "move", note)
    counted: list[int] = []
    (result,) = await retention.run_now(None, lambda _, rows: counted.append(rows))
    assert lost
    assert (result.status, result.deleted) == ("completed" if then == "goes on" else "stopped", 10)
    assert counted == [10]
    assert house.sample("retention_rows_deleted_total", table="inbound_events") == 10
    assert [entry["deleted"] for entry in house.audited()] == [10]

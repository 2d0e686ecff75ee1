"""The scheduler: it survives outages and ends in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from support.postgres import PostgresServer
from support.retention import EVENTS, RetentionDB, until
from watchkeeper.retention import Retention
from watchkeeper.retention._scheduler import Scheduler

POLL = timedelta(milliseconds=30)


@asynccontextmanager
async def scheduled(retention: Retention, grace: timedelta = timedelta(seconds=5)) -> AsyncIterator[None]:
    """Run the scheduler for retention, and end it as the keeper does."""
    loop = asyncio.create_task(Scheduler(retention, poll=POLL, grace=grace).run())
    try:
        yield
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


async def test_scheduler_registers_the_policies_and_runs_what_is_due(db: RetentionDB) -> None:
    """The first check registers, and the first scheduled time after that is run."""
    db.make_table()
    db.fill("inbound_events", 31, 3)
    async with scheduled(db.retention(EVENTS)):
        await until(lambda: db.count("retention_policies"))
        assert db.runs() == []
        db.sql("UPDATE retention_policies SET since = now() - interval '1 day'")
        await until(db.audit_payloads)
    assert db.runs() == [(1, "completed", 3)]


async def test_open_run_is_handed_over_when_the_scheduler_ends(db: RetentionDB) -> None:
    """It ends its transaction, is closed and audited, and the next start continues it at once."""
    db.make_table(old=4000)
    db.slow_down(0.2)
    retention = await db.overdue(EVENTS)
    async with scheduled(retention):
        await until(lambda: db.count("inbound_events") < 4000)
    left = db.count("inbound_events")
    assert 0 < left < 4000
    assert db.runs() == [(1, "stopped", 4000 - left)]
    assert [(entry["deleted"], entry["status"]) for entry in db.audit_payloads()] == [
        (4000 - left, "stopped")
    ]
    assert db.job_statuses() == ["scheduled", "started", "scheduled"]
    db.sql("DROP TRIGGER act ON inbound_events")
    assert [result.deleted for result in await db.retention(EVENTS).tick()] == [left]
    assert db.runs()[1:] == [(2, "completed", left)]


async def test_run_that_does_not_stop_in_time_is_left_to_its_lease(db: RetentionDB) -> None:
    """The scheduler ends within its grace period; another process closes the run later."""
    db.make_table(old=10)
    db.slow_down(100)
    retention = await db.overdue(EVENTS)
    began = asyncio.get_running_loop().time()
    async with scheduled(retention, grace=timedelta(milliseconds=100)):
        deleting = "relation = 'inbound_events'::regclass AND mode = 'RowExclusiveLock'"
        await until(lambda: db.count(f"pg_locks WHERE {deleting}"))
    assert asyncio.get_running_loop().time() - began < 60
    assert db.runs() == [(1, "running", 0)]
    db.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s'")
    assert [result.status for result in await db.retention(EVENTS).tick()] == ["failed"]
    assert db.count("inbound_events") == 10


async def test_scheduler_survives_an_outage_and_reports_it_once(
    private_db: RetentionDB, postgres_private: PostgresServer
) -> None:
    """One line for its start, one for its end, and then the missed run is done."""
    private_db.make_table()
    private_db.fill("inbound_events", 31, 3)
    retention = await private_db.overdue(EVENTS)
    due, private_db.schedule.time = private_db.schedule.time, private_db.schedule.time - timedelta(days=20)
    private_db.close()
    postgres_private.stop()
    async with scheduled(retention):
        await until(lambda: private_db.lines("schedule"))
        private_db.schedule.time = due
        await asyncio.sleep(2.5)  # some more looks
        assert [line["status"] for line in private_db.lines("schedule")] == ["waiting"]
        postgres_private.start()
        private_db.reconnect()
        await until(private_db.audit_payloads)
        await until(lambda: len(private_db.lines("schedule")) == 2)
    assert [line["status"] for line in private_db.lines("schedule")] == ["waiting", "resumed"]
    assert private_db.runs() == [(1, "completed", 3)]


async def test_scheduler_survives_an_unexpected_error(db: RetentionDB) -> None:
    """A broken schedule is reported once as a failed job, and the scheduler continues once it works."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    due = db.schedule.time
    db.schedule.time = None  # type: ignore[assignment]
    async with scheduled(retention):
        await until(lambda: "failed" in db.job_statuses())
        await asyncio.sleep(0.2)
        db.schedule.time = due
        await until(db.audit_payloads)
    assert db.job_statuses() == ["scheduled", "failed", "started", "completed"]
    assert db.lines("job")[1]["error"]["stack"]

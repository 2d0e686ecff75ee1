"""Retention beside other users of a table: it waits for locks, and its transactions are short."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest

from support.retention import BOTH_SCANS, EVENTS, OnDeleted, RetentionDB
from watchkeeper.retention import Limits


@contextmanager
def transaction(db: RetentionDB, statement: str) -> Iterator[psycopg.Connection]:
    """Run a statement in another transaction, which stays open."""
    with psycopg.connect(db.urls.owner_url) as conn:
        conn.execute(statement.encode())
        yield conn
        conn.rollback()


@BOTH_SCANS
async def test_briefly_locked_rows_are_deleted_in_a_later_pass(db: RetentionDB, *, indexed: bool) -> None:
    """The other rows are deleted first."""
    db.force_index_scans()
    db.make_table(indexed=indexed, old=3000)
    with transaction(db, "SELECT FROM inbound_events WHERE id LIKE '40-12%' FOR UPDATE") as other:
        asyncio.get_running_loop().call_later(0.4, other.rollback)
        (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("completed", 3000)


@BOTH_SCANS
async def test_rows_that_stay_locked_fail_the_run(db: RetentionDB, *, indexed: bool) -> None:
    """All other rows are deleted and counted; the error has the number and says where to look."""
    db.force_index_scans()
    db.tune(pass_waits=(timedelta(0),) * 3)
    db.make_table(indexed=indexed, old=3000)
    with transaction(db, "SELECT FROM inbound_events WHERE id LIKE '40-12%' FOR UPDATE"):
        ((locked,),) = db.sql("SELECT count(*) FROM inbound_events WHERE id LIKE '40-12%'")
        (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("failed", 3000 - locked)
    message = re.match(r"Up to (\d+) eligible rows of inbound_events are locked by other", str(result.error))
    assert message is not None
    assert locked <= int(message[1]) <= locked + 4
    assert db.count("inbound_events") == locked


async def test_formerly_locked_rows_are_deleted_beside_locked_ones(db: RetentionDB) -> None:
    """A past lock leaves xmax set, whether it was committed, rolled back, shared or an update."""
    db.make_table(indexed=False)
    db.sql("ALTER TABLE inbound_events ADD source text")
    db.sql("GRANT ALL ON inbound_events TO keeper")
    db.fill("inbound_events", 40, 3000)
    db.sql("UPDATE inbound_events SET source = 'x' WHERE id LIKE '40-1%%'")
    db.sql("SELECT FROM inbound_events WHERE id LIKE '40-2%%' FOR UPDATE")
    for strength, rows in (("UPDATE", "40-3%"), ("KEY SHARE", "40-4%"), ("SHARE", "40-4%")):
        with transaction(db, f"SELECT FROM inbound_events WHERE id LIKE '{rows}' FOR {strength}"):
            pass
    kept = "SELECT FROM inbound_events WHERE id LIKE '40-5%' FOR KEY SHARE"
    with transaction(db, kept) as other:
        asyncio.get_running_loop().call_later(0.3, other.rollback)
        (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("completed", 3000)
    assert db.count("inbound_events") == 0


async def test_many_locked_rows_of_one_age_end_the_pass(db: RetentionDB) -> None:
    """More of them than a sweep takes do not make it loop."""
    db.force_index_scans()
    db.tune(pass_waits=(timedelta(0),) * 2)
    db.limit_batches(rows=1000)
    db.make_table()
    db.sql("INSERT INTO inbound_events SELECT g, '2020-01-01' FROM generate_series(1, 3000) g")
    with transaction(db, "SELECT FROM inbound_events FOR UPDATE"):
        (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("failed", 0)


async def test_row_updated_while_locked_stays(db: RetentionDB) -> None:
    """The update has made the row young."""
    db.make_table(old=10)
    with transaction(db, "UPDATE inbound_events SET received_at = now() WHERE id = '40-5'") as other:
        asyncio.get_running_loop().call_later(0.1, other.commit)
        (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("completed", 9)
    assert db.sql("SELECT id FROM inbound_events") == [("40-5",)]


async def test_locked_table_is_waited_for(db: RetentionDB) -> None:
    """The run leaves the lock queue after each second, so others do not wait behind it."""
    db.make_table(old=10)
    with transaction(db, "LOCK TABLE inbound_events") as other:
        asyncio.get_running_loop().call_later(1.2, other.rollback)
        (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("completed", 10)
    assert result.duration > timedelta(seconds=1)


async def test_a_table_that_stays_locked_fails_the_run(db: RetentionDB) -> None:
    """After a bounded number of tries."""
    db.tune(retry_waits=(timedelta(0),), lock_timeout=timedelta(milliseconds=20))
    db.make_table(old=10)
    with transaction(db, "LOCK TABLE inbound_events"):
        (result,) = await db.retention(EVENTS).run_now()
    assert result.status == "failed"
    assert isinstance(result.error, psycopg.errors.LockNotAvailable)
    assert db.runs() == [(1, "failed", 0)]


async def test_lease_is_renewed_while_the_run_waits_for_a_lock(db: RetentionDB) -> None:
    """Also for longer than the lease."""
    db.tune(retry_waits=(timedelta(milliseconds=50),) * 40, lock_timeout=timedelta(milliseconds=20))
    db.make_table(old=10)
    lease = timedelta(milliseconds=600)
    runner, observer = db.retention(EVENTS, lease=lease), db.retention(EVENTS, lease=lease)
    with transaction(db, "LOCK TABLE inbound_events") as other:
        run = asyncio.create_task(runner.run_now())
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            assert await observer.tick() == []
            await asyncio.sleep(0.05)
        other.rollback()
        (result,) = await run
    assert (result.status, result.deleted) == ("completed", 10)


async def test_slow_sweeps_become_smaller(db: RetentionDB) -> None:
    """Transactions of over 100 ms halve the number of rows, down to a hundred."""
    db.force_index_scans()
    db.make_table(old=2000)
    db.slow_down(0.11)
    batches: list[int] = []
    (result,) = await db.retention(EVENTS).run_now(observer=OnDeleted(lambda _, rows: batches.append(rows)))
    assert result.deleted == 2000
    assert batches == [1000, 500, 250, 125, 100, 25]


@pytest.mark.parametrize(("budget", "times"), [(0.25, 3.0), (0.5, 1.0), (1.0, 0.0)])
async def test_run_pauses_according_to_its_budget(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch, budget: float, times: float
) -> None:
    """After each transaction, in proportion to its duration."""
    db.force_index_scans()
    db.make_table(old=3000)
    db.slow_down(0.02)
    pauses: list[timedelta] = []

    async def note(_self: object, pause: timedelta) -> None:
        pauses.append(pause)

    monkeypatch.setattr("watchkeeper.retention.run._lease.Lease.sleep", note)
    (result,) = await db.retention(EVENTS, limits=Limits(share=1.0, budget=budget)).run_now()
    assert (result.status, result.deleted) == ("completed", 3000)
    assert all(pause >= timedelta(seconds=0.02 * times) for pause in pauses)
    assert bool(pauses) == (budget < 1.0)

"""Later passes that find nothing only read: no lock, nothing written, and still part of the run."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from support.retention import EVENTS, OnDeleted, RetentionDB, close_run_as_peer
from watchkeeper.retention.ledger._interrupts import RunCancelledError, RunLostError, RunPausedError
from watchkeeper.retention.run._batch import skip_empty
from watchkeeper.retention.run._write_detector import WriteDetector

ROWS = 10_000


@pytest.fixture
def db(db: RetentionDB) -> RetentionDB:
    """Old rows whose later pass reads many times, and checks for interrupts after each read."""
    db.tune(check_interval=timedelta(0))
    db.limit_batches(blocks=8)
    db.make_table(indexed=False, old=ROWS)
    db.fill("inbound_events", 1, 1)
    return db


@pytest.fixture
async def writer(db: RetentionDB) -> AsyncIterator[None]:
    """Another session with an open write transaction, so that rows may move."""
    db.sql("CREATE TABLE notes (note text)")
    with psycopg.connect(db.urls.owner_url) as other:
        other.execute("INSERT INTO notes VALUES ('a thing that takes time')")
        yield


async def do_nothing(_number: int) -> None:
    """Let a read pass."""


def before_each_read(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[int], Awaitable[None]] = do_nothing
) -> list[bool]:
    """Do something before each read, given its number; return whether each found nothing."""
    found: list[bool] = []

    async def acting(*args: Any) -> Any:
        await act(len(found))
        nothing = await skip_empty(*args)
        found.append(nothing is not None)
        return nothing

    monkeypatch.setattr("watchkeeper.retention.run._batches.skip_empty", acting)
    return found


async def test_no_second_pass_without_other_writers(db: RetentionDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row can have moved behind the first pass."""
    looks = before_each_read(monkeypatch)
    (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted, looks) == ("completed", ROWS, [])


async def test_row_that_moves_behind_the_first_pass_is_deleted(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A committed update elsewhere in the table is enough for a second pass."""
    db.sql("VACUUM inbound_events")
    retention = db.retention(EVENTS)
    moved: list[object] = []

    def move(_table: str, _rows: int) -> None:
        if (
            not moved
        ):  # the first blocks are empty: vacuumed, they take the new version of a row of the last one
            db.sql("VACUUM inbound_events")
            moved.append(db.sql("SELECT max(ctid) FROM inbound_events"))
            db.sql("UPDATE inbound_events SET id = 'moved' WHERE id = %s", f"40-{ROWS - 100}")
            ((place,),) = db.sql("SELECT ctid < '(8,0)' FROM inbound_events WHERE id = 'moved'")
            assert place

    looks = before_each_read(monkeypatch)
    (result,) = await retention.run_now(observer=OnDeleted(move))
    assert looks.count(False) == 1
    assert (result.status, result.deleted, db.count("inbound_events")) == ("completed", ROWS, 1)


async def test_row_moved_by_a_foreign_key_is_deleted(db: RetentionDB) -> None:
    """Without other writers, the run's own delete of a parent updates a child behind it."""
    db.sql("ALTER TABLE inbound_events ADD parent text REFERENCES inbound_events ON DELETE SET NULL")
    db.sql("CREATE INDEX ON inbound_events (parent)")
    db.sql("UPDATE inbound_events SET parent = '40-1' WHERE id = %s", f"40-{ROWS - 100}")
    db.sql("VACUUM (FULL, ANALYZE) inbound_events")
    *_, (full,), (begun,) = db.sql(
        "SELECT count(*) FROM inbound_events GROUP BY (ctid::text::point)[0] ORDER BY (ctid::text::point)[0]"
    )
    # All pages are full: who is updated goes to a new one, where the pass does not come to.
    db.sql(
        "INSERT INTO inbound_events SELECT 'x-' || g, now() FROM generate_series(1000, %s) g",
        999 + full - begun,
    )
    (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("completed", ROWS)
    assert db.count("inbound_events") == 1 + full - begun


async def test_other_writers_are_detected(db: RetentionDB) -> None:
    """Open at the start or at the end, rolled back, in a savepoint; in doubt always."""
    others = WriteDetector()
    connect = partial(psycopg.connect, db.urls.owner_url)
    takes_id = "SELECT pg_current_xact_id()"

    async def seen() -> bool:
        async with db.database.transaction() as conn:
            return await others.detected(conn)

    async def begin() -> None:
        async with db.database.transaction() as conn:
            await others.begin(conn)

    assert await seen()  # it was never begun
    await begin()
    assert not await seen()
    db.sql(takes_id)
    assert await seen()
    others.record_own_write()
    assert not await seen()
    with connect() as early, connect() as late:
        early.execute(takes_id)
        late.execute(takes_id)
        late.rollback()
        others.record_own_write()
        assert await seen()  # an older one has not ended
        await begin()
        early.rollback()
        assert await seen()  # it had not when it was begun
        await begin()
        early.execute(takes_id)
        early.execute("SAVEPOINT here")
        early.execute("CREATE TABLE things ()")
        early.rollback()
        others.record_own_write()
        assert await seen()
    await begin()
    assert not await seen()
    others.invalidate()
    assert await seen()


@pytest.mark.usefixtures("writer")
@pytest.mark.parametrize(
    ("word", "status", "error"),
    [("cancel", "cancelled", RunCancelledError), ("pause", "stopped", RunPausedError)],
)
async def test_read_only_pass_checks_for_interrupts(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch, word: str, status: str, error: type[Exception]
) -> None:
    """No further read follows the command."""
    retention = await db.overdue(EVENTS)

    async def say(number: int) -> None:
        if number == 1:
            await getattr(retention.operator, word)("inbound_events", by="ann")

    looks = before_each_read(monkeypatch, say)
    (result,) = await retention.tick()
    assert looks == [True, True]
    assert (result.status, result.deleted) == (status, ROWS)
    assert isinstance(result.error, error)
    assert db.runs() == [(1, status, ROWS)]
    assert [entry["deleted"] for entry in db.audit_payloads()] == [ROWS]


@pytest.mark.usefixtures("writer")
async def test_read_only_pass_renews_the_lease(db: RetentionDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes several leases, and no other replica takes over its run."""
    lease = timedelta(seconds=0.6)
    retention = await db.overdue(EVENTS, lease=lease)
    other = db.retention(EVENTS, lease=lease)

    async def dawdle(_number: int) -> None:
        await asyncio.sleep(lease.total_seconds() / 3)
        assert await other.tick() == []

    looks = before_each_read(monkeypatch, dawdle)
    (result,) = await retention.tick()
    assert all(looks)
    assert len(looks) > 6
    assert (result.status, result.deleted) == ("completed", ROWS)
    assert db.runs() == [(1, "completed", ROWS)]


@pytest.mark.usefixtures("writer")
async def test_read_only_pass_ends_when_its_run_was_closed(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closing process audited it; this one reports the lost run and nothing else."""
    retention = db.retention(EVENTS)

    async def lose(number: int) -> None:
        if number == 1:
            close_run_as_peer(db)

    looks = before_each_read(monkeypatch, lose)
    (result,) = await retention.run_now()
    assert looks == [True, True]
    assert (result.status, result.left_open) == ("failed", True)
    assert isinstance(result.error, RunLostError)
    assert [entry["deleted"] for entry in db.audit_payloads()] == [ROWS]


@pytest.mark.usefixtures("writer")
async def test_rows_found_by_a_read_only_pass_are_deleted(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sweeps those blocks, then continues reading."""

    async def add(number: int) -> None:
        if number == 1:  # to the end of the table, where the looks have not come to
            db.sql("INSERT INTO inbound_events VALUES ('late', now() - interval '40 days')")

    looks = before_each_read(monkeypatch, add)
    (result,) = await db.retention(EVENTS).run_now()
    assert looks.count(False) == 1
    assert (result.status, result.deleted) == ("completed", ROWS + 1)
    assert db.count("inbound_events") == 1

"""Later passes that find nothing and only look: no lock, nothing written, and part of a run all the same."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from support.house import EVENTS, House, close_as_another_would, open_house
from watchkeeper.retention import RunCancelledError, RunLostError, RunPausedError
from watchkeeper.retention.run import _batch_size, _throttle
from watchkeeper.retention.run._sweep import BlockSpan, look_ahead
from watchkeeper.retention.run._write_detector import OtherWriters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from support.postgres import DatabaseUrls

ROWS = 10_000


@pytest.fixture
async def house(
    database_urls: DatabaseUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    """A table of old rows whose later pass looks many times, and listens after each look."""
    monkeypatch.setattr(_throttle, "_LOOK_S", 0.0)
    monkeypatch.setitem(_batch_size._LARGEST_SIZE, BlockSpan, 8)
    async with open_house(database_urls, tmp_path) as opened:
        opened.make_table(indexed=False)
        opened.fill("inbound_events", 40, ROWS)
        opened.fill("inbound_events", 1, 1)
        yield opened


@pytest.fixture
async def writer(house: House) -> AsyncIterator[None]:
    """Somebody who has something of their own to write all the while, so that rows may move."""
    house.sql("CREATE TABLE notes (note text)")
    with psycopg.connect(house.urls.owner_url) as other:
        other.execute("INSERT INTO notes VALUES ('a thing that takes time')")
        yield


def before_each_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], Awaitable[None]]) -> list[bool]:
    """Have something done before each look, which is told its number; return whether each found nothing."""
    found: list[bool] = []

    async def acting(*args: Any) -> Any:
        await act(len(found))
        nothing = await look_ahead(*args)
        found.append(nothing is not None)
        return nothing

    monkeypatch.setattr("watchkeeper.retention.run._pruning.look_ahead", acting)
    return found


async def test_nothing_is_looked_at_again_where_nobody_else_wrote(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row can have moved past the first pass."""

    async def pass_by(_number: int) -> None:
        return

    looks = before_each_look(monkeypatch, pass_by)
    (result,) = await house.retention(EVENTS).run_now()
    assert (result.status, result.deleted, looks) == ("completed", ROWS, [])


async def test_a_row_that_moves_past_the_first_pass_goes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update whose transaction has ended, in another place than the pass is at, is enough for a look."""
    house.sql("VACUUM inbound_events")
    retention = house.retention(EVENTS)
    moved: list[object] = []

    def move(_table: str, _rows: int) -> None:
        if (
            not moved
        ):  # the first blocks are empty: vacuumed, they take the new version of a row of the last one
            house.sql("VACUUM inbound_events")
            moved.append(house.sql("SELECT max(ctid) FROM inbound_events"))
            house.sql("UPDATE inbound_events SET id = 'moved' WHERE id = %s", f"40-{ROWS - 100}")
            ((place,),) = house.sql("SELECT ctid < '(8,0)' FROM inbound_events WHERE id = 'moved'")
            assert place

    async def pass_by(_number: int) -> None:
        return

    looks = before_each_look(monkeypatch, pass_by)
    (result,) = await retention.run_now(None, move)
    assert looks.count(False) == 1
    assert (result.status, result.deleted, house.count("inbound_events")) == ("completed", ROWS, 1)


async def test_a_row_that_a_foreign_key_moves_goes(house: House) -> None:
    """With nobody else there, the run's own delete of a parent updates its child, which is behind it then."""
    house.sql("ALTER TABLE inbound_events ADD parent text REFERENCES inbound_events ON DELETE SET NULL")
    house.sql("CREATE INDEX ON inbound_events (parent)")
    house.sql("UPDATE inbound_events SET parent = '40-1' WHERE id = %s", f"40-{ROWS - 100}")
    house.sql("VACUUM (FULL, ANALYZE) inbound_events")
    *_, (full,), (begun,) = house.sql(
        "SELECT count(*) FROM inbound_events GROUP BY (ctid::text::point)[0] ORDER BY (ctid::text::point)[0]"
    )
    # All pages are full: who is updated goes to a new one, where the pass does not come to.
    house.sql(
        "INSERT INTO inbound_events SELECT 'x-' || g, now() FROM generate_series(1000, %s) g",
        999 + full - begun,
    )
    (result,) = await house.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("completed", ROWS)
    assert house.count("inbound_events") == 1 + full - begun


async def test_whoever_writes_is_seen(house: House) -> None:
    """Who is not done at the beginning or at the end, who gave up, who made a savepoint; in doubt always."""
    others = OtherWriters()
    connect = partial(psycopg.connect, house.urls.owner_url)
    takes_id = "SELECT pg_current_xact_id()"

    async def seen() -> bool:
        async with house.database.transaction() as conn:
            return await others.seen(conn)

    async def begin() -> None:
        async with house.database.transaction() as conn:
            await others.begin(conn)

    assert await seen()  # it was never begun
    await begin()
    assert not await seen()
    house.sql(takes_id)
    assert await seen()
    others.note_own()
    assert not await seen()
    with connect() as early, connect() as late:
        early.execute(takes_id)
        late.execute(takes_id)
        late.rollback()
        others.note_own()
        assert await seen()  # an older one has not ended
        await begin()
        early.rollback()
        assert await seen()  # it had not when it was begun
        await begin()
        early.execute(takes_id)
        early.execute("SAVEPOINT here")
        early.execute("CREATE TABLE things ()")
        early.rollback()
        others.note_own()
        assert await seen()
    await begin()
    assert not await seen()
    others.doubt()
    assert await seen()


@pytest.mark.usefixtures("writer")
@pytest.mark.parametrize(
    ("word", "status", "error"),
    [("cancel", "cancelled", RunCancelledError), ("pause", "stopped", RunPausedError)],
)
async def test_a_pass_that_only_looks_hears_the_operator(
    house: House, monkeypatch: pytest.MonkeyPatch, word: str, status: str, error: type[Exception]
) -> None:
    """After the look during which the word was said no other begins."""
    retention = await house.due(EVENTS)

    async def say(number: int) -> None:
        if number == 1:
            await getattr(retention.operator, word)("inbound_events", by="ann")

    looks = before_each_look(monkeypatch, say)
    (result,) = await retention.tick()
    assert looks == [True, True]
    assert (result.status, result.deleted) == (status, ROWS)
    assert isinstance(result.error, error)
    assert house.runs() == [(1, status, ROWS)]
    assert [entry["deleted"] for entry in house.audited()] == [ROWS]


@pytest.mark.usefixtures("writer")
async def test_a_pass_that_only_looks_keeps_the_lease(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes several leases' time, and no other replica takes its run for dead."""
    lease = timedelta(seconds=0.6)
    retention = await house.due(EVENTS, lease=lease)
    other = house.retention(EVENTS, lease=lease)

    async def dawdle(_number: int) -> None:
        await asyncio.sleep(lease.total_seconds() / 3)
        assert await other.tick() == []

    looks = before_each_look(monkeypatch, dawdle)
    (result,) = await retention.tick()
    assert all(looks)
    assert len(looks) > 6
    assert (result.status, result.deleted) == ("completed", ROWS)
    assert house.runs() == [(1, "completed", ROWS)]


@pytest.mark.usefixtures("writer")
async def test_a_pass_that_only_looks_ends_when_its_run_was_closed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever closed it has audited it; who looked on says that it is lost, and nothing more."""
    retention = house.retention(EVENTS)

    async def lose(number: int) -> None:
        if number == 1:
            close_as_another_would(house)

    looks = before_each_look(monkeypatch, lose)
    (result,) = await retention.run_now()
    assert looks == [True, True]
    assert (result.status, result.left_open) == ("failed", True)
    assert isinstance(result.error, RunLostError)
    assert [entry["deleted"] for entry in house.audited()] == [ROWS]


@pytest.mark.usefixtures("writer")
async def test_rows_that_come_to_be_old_where_a_pass_looks_go(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that finds one makes the sweep of those blocks, and the pass goes on looking after it."""

    async def add(number: int) -> None:
        if number == 1:  # to the end of the table, where the looks have not come to
            house.sql("INSERT INTO inbound_events VALUES ('late', now() - interval '40 days')")

    looks = before_each_look(monkeypatch, add)
    (result,) = await house.retention(EVENTS).run_now()
    assert looks.count(False) == 1
    assert (result.status, result.deleted) == ("completed", ROWS + 1)
    assert house.count("inbound_events") == 1

"""The loop that looks after retention: through outages, and to an orderly end."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from support.house import EVENTS, House, open_house
from watchkeeper.retention import Scheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from support.postgres import DatabaseUrls, PostgresServer
    from watchkeeper.retention import Retention

POLL = timedelta(milliseconds=30)


@pytest.fixture
async def house(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[House]:
    """A database to keep."""
    async with open_house(database_urls, tmp_path) as opened:
        yield opened


@asynccontextmanager
async def scheduled(retention: Retention, grace: timedelta = timedelta(seconds=5)) -> AsyncIterator[None]:
    """Have a loop look after retention, and end it as the keeper does."""
    loop = asyncio.create_task(Scheduler(retention, poll=POLL, grace=grace).run())
    try:
        yield
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


async def until(happened: Callable[[], object]) -> None:
    """Wait until something has happened."""
    async with asyncio.timeout(20):
        while not happened():  # noqa: ASYNC110 - it is in another process, or in the database
            await asyncio.sleep(0.01)


async def test_the_loop_registers_the_policies_and_runs_what_is_due(house: House) -> None:
    """The first look registers, and the first due after that is run, without anybody asking."""
    house.make_table()
    house.fill("inbound_events", 31, 3)
    async with scheduled(house.retention(EVENTS)):
        await until(lambda: house.count("retention_policies"))
        assert house.runs() == []
        house.sql("UPDATE retention_policies SET since = now() - interval '1 day'")
        await until(house.audited)
    assert house.runs() == [(1, "completed", 3)]


async def test_a_run_that_is_going_on_is_handed_over_when_the_loop_ends(house: House) -> None:
    """It ends its transaction, is closed and audited, and the next start goes on at once where it ended."""
    house.make_table()
    house.fill("inbound_events", 40, 4000)
    slow_down(house)
    retention = await house.due(EVENTS)
    async with scheduled(retention):
        await until(lambda: house.count("inbound_events") < 4000)
    left = house.count("inbound_events")
    assert 0 < left < 4000
    assert house.runs() == [(1, "stopped", 4000 - left)]
    assert [(entry["deleted"], entry["status"]) for entry in house.audited()] == [(4000 - left, "stopped")]
    assert house.job() == ["scheduled", "started", "scheduled"]
    house.sql("DROP TRIGGER slow ON inbound_events")
    assert [result.deleted for result in await house.retention(EVENTS).tick()] == [left]
    assert house.runs()[1:] == [(2, "completed", left)]


async def test_stops_do_not_use_up_the_attempts_of_a_due(house: House) -> None:
    """Five restarts in the middle of a run, and it still goes on."""
    house.make_table()
    house.fill("inbound_events", 40, 12_000)
    slow_down(house)
    await house.due(EVENTS)
    for _ in range(5):
        before = house.count("inbound_events")
        async with scheduled(house.retention(EVENTS)):
            await until(lambda before=before: house.count("inbound_events") < before)  # type: ignore[misc]
    house.sql("DROP TRIGGER slow ON inbound_events")
    await house.retention(EVENTS).tick()
    assert house.count("inbound_events") == 0
    assert [state for _, state, _ in house.runs()] == ["stopped"] * 5 + ["completed"]
    assert sum(entry["deleted"] for entry in house.audited()) == 12_000


async def test_a_run_that_does_not_stop_in_time_is_left_to_its_lease(house: House) -> None:
    """The loop ends within its grace; the ledger still has the run, and who finds it closes it."""
    house.make_table()
    house.fill("inbound_events", 40, 10)
    slow_down(house, 30)
    retention = await house.due(EVENTS)
    began = asyncio.get_running_loop().time()
    async with scheduled(retention, grace=timedelta(milliseconds=100)):
        await until(house.runs)
        await asyncio.sleep(0.2)
    assert asyncio.get_running_loop().time() - began < 8
    assert house.runs() == [(1, "running", 0)]
    house.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s'")
    assert [result.status for result in await house.retention(EVENTS).tick()] == ["failed"]
    assert house.count("inbound_events") == 10


async def test_the_loop_survives_an_outage_and_tells_it_once(
    postgres_private: PostgresServer, tmp_path: Path
) -> None:
    """Down at 3 AM: one line says so, one that it is over, and then the run that was missed is done."""
    urls = postgres_private.create_database("wk_template")
    async with open_house(urls, tmp_path) as house:
        house.make_table()
        house.fill("inbound_events", 31, 3)
        retention = await house.due(EVENTS)
        due, house.calendar.due = house.calendar.due, house.calendar.due - timedelta(days=20)
        house.close()
        postgres_private.stop()
        async with scheduled(retention):
            await until(lambda: house.lines("schedule"))
            house.calendar.due = due
            await asyncio.sleep(2.5)  # some more looks
            assert [line["status"] for line in house.lines("schedule")] == ["waiting"]
            postgres_private.start()
            house.reconnect()
            await until(house.audited)
            await until(lambda: len(house.lines("schedule")) == 2)
        assert [line["status"] for line in house.lines("schedule")] == ["waiting", "resumed"]
        assert house.runs() == [(1, "completed", 3)]


async def test_the_loop_survives_an_error_that_nobody_expected(house: House) -> None:
    """A broken calendar is told once, as a failed job, and the loop goes on when it is mended."""
    house.make_table()
    retention = await house.due(EVENTS)
    due = house.calendar.due
    house.calendar.due = None  # type: ignore[assignment]
    async with scheduled(retention):
        await until(lambda: "failed" in house.job())
        await asyncio.sleep(0.2)
        house.calendar.due = due
        await until(house.audited)
    assert house.job() == ["scheduled", "failed", "started", "completed"]
    assert house.lines("job")[1]["error"]["stack"]


def slow_down(house: House, seconds: float = 0.2) -> None:
    """Have each DELETE take its time."""
    house.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END$$"
    )
    house.sql(
        "CREATE TRIGGER slow BEFORE DELETE ON inbound_events FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )

"""Where the line is between what goes and what stays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.house import FLAT_OUT, House, open_house
from watchkeeper.database import Database
from watchkeeper.retention import Ledger, Policy, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.postgres import DatabaseUrls

HORIZON = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)  # when the clocks of Europe go forward
# Microseconds around the horizon, and the decades before and after it.
DISTANCES = st.one_of(st.integers(-3, 3), st.integers(-(10**15), 10**15))


@pytest.fixture
async def house(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[House]:
    """A database to keep, with one table whose ages have an index, and one where they have none."""
    async with open_house(database_urls, tmp_path) as opened:
        opened.make_table("by_age", "at")
        opened.make_table("by_place", "at", indexed=False)
        yield opened


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    distances=st.lists(DISTANCES, min_size=1, max_size=40),
    zone=st.sampled_from(["UTC", "Asia/Kathmandu", "Europe/Kyiv", "America/New_York"]),
)
async def test_what_is_older_than_the_horizon_goes_and_nothing_else(
    house: House, distances: list[int], zone: str
) -> None:
    """A row at the horizon stays, one a microsecond older goes, whatever the time zone of the session."""
    house.sql(f"ALTER DATABASE {house.urls.name} SET timezone = '{zone}'")
    async with Database(house.urls.url) as database:
        ledger = Ledger(database, redact=str)
        for table in ("by_age", "by_place"):
            policy = Policy(table=table, age_column="at", keep=timedelta(days=30))
            house.sql(f"TRUNCATE {table}")
            for number, distance in enumerate(distances):
                at = HORIZON + timedelta(microseconds=distance)
                house.sql(f"INSERT INTO {table} VALUES (%s, %s)", str(number), at)  # noqa: S608 - our names
            await ledger.register([policy])
            claim = replace(await ledger.claim_now(policy), horizon=HORIZON)
            result = await run(
                database,
                ledger,
                policy,
                claim,
                limits=FLAT_OUT,
                stopping=asyncio.Event(),
                on_rows=lambda _rows: None,
            )
            left = {int(number) for (number,) in house.sql(f"SELECT id FROM {table}")}  # noqa: S608 - the same
            assert left == {number for number, distance in enumerate(distances) if distance >= 0}
            assert result.deleted == len(distances) - len(left)

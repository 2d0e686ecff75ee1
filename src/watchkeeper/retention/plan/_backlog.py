"""The backlog: rows that are past their horizon and still there, regardless of what runs report.

It is read from the table, not from the ledger: a run that deletes nothing can be green for months. Scrapes
refresh it, so it is bounded: by the index on the age column or a few blocks, each statement by a second.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors

from watchkeeper.exceptions import DatabaseUnavailableError, RetentionError
from watchkeeper.retention._model import Backlog
from watchkeeper.retention._queries import QUERIES, fetch_row, set_transaction
from watchkeeper.retention.plan._plan import estimate_eligible
from watchkeeper.retention.table._sample import sample, sample_percent
from watchkeeper.retention.table._target import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.database import Database
    from watchkeeper.retention._policy import Policy

REFRESH_INTERVAL: Final = timedelta(minutes=1)
"""Minimum time between two refreshes of a process, regardless of the scrape rate."""

# Refreshing takes at most 1 % of the time.
_REST_FACTOR: Final = 100
# How long a scrape waits for a refresh that it started; a slower refresh shows in the next scrape.
_SCRAPE_WAITS_S: Final = 0.5
_STATEMENT_TIMEOUT: Final = timedelta(seconds=1)
_LOCK_TIMEOUT: Final = timedelta(milliseconds=500)
# For a server that does not even cancel its statements in time.
_CONNECTION_TIMEOUT: Final = timedelta(seconds=3)

# Where an index scan finds more eligible rows, their number is estimated.
_MOST_COUNTED: Final = 1000
# A table that only grows has its oldest rows in its first blocks, which a random sample rarely reads.
_FIRST_BLOCKS: Final = 64


async def read_backlog(conn: AsyncConnection[Any], policy: Policy, now: datetime) -> Backlog:
    """Read the backlog of a table in its own transaction; raises RetentionError if a run would fail."""
    await set_transaction(conn, statement=_STATEMENT_TIMEOUT, lock=_LOCK_TIMEOUT)
    target = await (await find_target(conn, policy)).with_holds(conn)
    horizon = policy.horizon(now)
    # Index entries may be of rows that are held, or deleted and not vacuumed: then reading blocks is faster.
    for read in (_read_by_index, _read_blocks) if target.indexed else (_read_blocks,):
        try:
            async with conn.transaction():
                return await read(conn, target, horizon)
        except errors.QueryCanceled:
            pass
    return Backlog(rows=await estimate_eligible(conn, target, horizon), exact=False, oldest=None)


async def _read_by_index(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> Backlog:
    rows, oldest = await fetch_row(
        conn, target.fill(QUERIES["first_eligible"]), {"horizon": horizon, "most": _MOST_COUNTED + 1}
    )
    if rows <= _MOST_COUNTED:
        return Backlog(rows=rows, exact=True, oldest=oldest)
    sampled = await sample(conn, target, horizon)
    return Backlog(rows=max(round(sampled.eligible), rows), exact=False, oldest=oldest)


async def _read_blocks(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> Backlog:
    percent = await sample_percent(conn, target)
    sampled, first, oldest = await fetch_row(
        conn,
        target.fill(QUERIES["sample_backlog"]),
        {"horizon": horizon, "percent": percent, "stop": f"({_FIRST_BLOCKS},0)"},
    )
    whole = percent >= 100.0
    return Backlog(rows=max(round(sampled * 100 / percent), first), exact=whole, oldest=oldest)


class BacklogWatch:
    """Refreshes the backlog of each policy in the background, and passes it to `show`."""

    def __init__(
        self, database: Database, policies: Iterable[Policy], show: Callable[[str, Backlog | None], None]
    ) -> None:
        self._database = database
        self._policies = tuple(policies)
        self._show = show
        self._refreshing: asyncio.Task[None] | None = None
        self._not_before = 0.0

    async def read(self, policies: Iterable[Policy] | None = None) -> dict[str, Backlog | None]:
        """Return the backlog of each policy, by name, now; None where a run would be refused or fail."""
        found: dict[str, Backlog | None] = {}
        for policy in self._policies if policies is None else policies:
            try:
                async with self._database.transaction(statement_timeout=_CONNECTION_TIMEOUT) as conn:
                    (now,) = await fetch_row(conn, QUERIES["clock"])
                    found[policy.name] = await read_backlog(conn, policy, now)
            except (RetentionError, psycopg.Error):
                found[policy.name] = None
        return found

    async def refresh(self) -> None:
        """Start a refresh unless there was one recently, and wait briefly for it."""
        if self._refreshing is None:
            if time.monotonic() < self._not_before:
                return
            self._refreshing = asyncio.create_task(self._refresh(), name="watchkeeper-backlog")
            await asyncio.wait({self._refreshing}, timeout=_SCRAPE_WAITS_S)
        if self._refreshing.done():
            finished, self._refreshing = self._refreshing, None
            finished.result()

    async def close(self) -> None:
        """Cancel the current refresh."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait({self._refreshing})
            self._refreshing = None

    async def _refresh(self) -> None:
        began = time.monotonic()
        self._not_before = began + REFRESH_INTERVAL.total_seconds()
        try:
            backlogs = await self.read()
        except DatabaseUnavailableError:  # the metric db_up shows that
            return
        for table, backlog in backlogs.items():
            self._show(table, backlog)
        ended = time.monotonic()
        self._not_before = max(self._not_before, ended + (ended - began) * _REST_FACTOR)

"""What of each table is past its horizon and still there, whatever the runs say of themselves.

A run that deletes nothing can be green for months. So this asks the table and not the ledger, by the
predicate of plan and delete. It goes with the scrapes, so it is bounded: by the index of the ages where there
is one, else in a few blocks, and each statement for a second at most.
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
from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.table._sample import sample, sampled_percent
from watchkeeper.retention.table._target import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.database import Database
    from watchkeeper.retention._policy import Policy

LOOK_EVERY: Final = timedelta(minutes=1)
"""Shortest time between two looks of a process, however often it is scraped."""

# A look that took long is not repeated before a hundred times that: a hundredth of the time at most.
_REST: Final = 100
# How long a scrape waits for a look that it began; what takes longer is shown to the next one.
_SCRAPE_WAITS_S: Final = 0.5
_STATEMENT_TIMEOUT: Final = timedelta(seconds=1)
_LOCK_TIMEOUT_MS: Final = 500
# A server that does not even end its statements in time is given up.
_PATIENCE: Final = timedelta(seconds=3)

# So many rows are counted by the index, where more are eligible they are estimated.
_COUNTED: Final = 1000
# A table that only grows has its oldest rows at its beginning, where a random sample rarely looks.
_FIRST_BLOCKS: Final = 64


async def read_backlog(conn: AsyncConnection[Any], policy: Policy, now: datetime) -> Backlog:
    """Look how much of a table is past its horizon, within a few seconds at most.

    Args:
        conn: The connection of a transaction of its own.
        policy: What was declared.
        now: The database's time.

    Raises:
        PolicyRefusedError: The policy may not be carried out, so that there is no saying what it means.
        RetentionError: The table or its age column does not exist, or a hold cannot be applied.
    """
    timeout = str(round(_STATEMENT_TIMEOUT / timedelta(milliseconds=1)))
    await conn.execute(QUERIES["limits"], {"statement_ms": timeout, "lock_ms": str(_LOCK_TIMEOUT_MS)})
    target = await (await find_target(conn, policy)).with_holds(conn)
    horizon = policy.horizon(now)
    try:
        # In a savepoint each: what takes too long is looked at in another way.
        async with conn.transaction():
            return await (_by_index if target.indexed else _by_blocks)(conn, target, horizon)
    except errors.QueryCanceled:
        pass
    if target.indexed:
        # The index leads to rows that are held, or that are gone and were not vacuumed yet.
        try:
            async with conn.transaction():
                return await _by_blocks(conn, target, horizon)
        except errors.QueryCanceled:
            pass
    (explained,) = await fetch_row(conn, target.fill(QUERIES["eligible_rows"]), {"horizon": horizon})
    return Backlog(rows=int(explained[0]["Plan"]["Plan Rows"]), exact=False, oldest=None)


async def _by_index(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> Backlog:
    rows, oldest = await fetch_row(
        conn, target.fill(QUERIES["first_eligible"]), {"horizon": horizon, "most": _COUNTED + 1}
    )
    if rows <= _COUNTED:
        return Backlog(rows=rows, exact=True, oldest=oldest)
    drawn = await sample(conn, target, horizon)
    return Backlog(rows=max(round(drawn.eligible), rows), exact=False, oldest=oldest)


async def _by_blocks(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> Backlog:
    percent = await sampled_percent(conn, target)
    sampled, first, oldest = await fetch_row(
        conn,
        target.fill(QUERIES["sample_backlog"]),
        {"horizon": horizon, "percent": percent, "stop": f"({_FIRST_BLOCKS},0)"},
    )
    whole = percent >= 100.0
    return Backlog(rows=max(round(sampled * 100 / percent), first), exact=whole, oldest=oldest)


class BacklogWatch:
    """Keeps the figures of the backlog, at most once a minute and in the background.

    Args:
        database: Where the tables are.
        policies: What is declared.
        show: Called with the backlog of each table.
    """

    def __init__(
        self, database: Database, policies: Iterable[Policy], show: Callable[[str, Backlog | None], None]
    ) -> None:
        self._database = database
        self._policies = tuple(policies)
        self._show = show
        self._looking: asyncio.Task[None] | None = None
        self._not_before = 0.0

    async def read(self, policies: Iterable[Policy] | None = None) -> dict[str, Backlog | None]:
        """Look at the tables now.

        Args:
            policies: Which; default all.

        Returns:
            The backlog by the policy's name; None where it is not known, as a run would be refused or fail.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
        """
        found: dict[str, Backlog | None] = {}
        for policy in self._policies if policies is None else policies:
            try:
                async with self._database.transaction(statement_timeout=_PATIENCE) as conn:
                    (now,) = await fetch_row(conn, QUERIES["clock"])
                    found[policy.name] = await read_backlog(conn, policy, now)
            except (RetentionError, psycopg.Error):
                found[policy.name] = None
        return found

    async def look(self) -> None:
        """Show the backlog of each table, unless it was looked at lately; wait for that a moment only.

        What could not be seen of a table is not shown; while the database is away all stays as it was.
        """
        if self._looking is None:
            if time.monotonic() < self._not_before:
                return
            self._looking = asyncio.create_task(self._look(), name="watchkeeper-backlog")
            await asyncio.wait({self._looking}, timeout=_SCRAPE_WAITS_S)
        if self._looking.done():
            looked, self._looking = self._looking, None
            looked.result()

    async def close(self) -> None:
        """Give up the look that is going on."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
            self._looking = None

    async def _look(self) -> None:
        began = time.monotonic()
        self._not_before = began + LOOK_EVERY.total_seconds()
        try:
            backlogs = await self.read()
        except DatabaseUnavailableError:  # db_up tells that
            return
        for table, backlog in backlogs.items():
            self._show(table, backlog)
        ended = time.monotonic()
        self._not_before = max(self._not_before, ended + (ended - began) * _REST)

"""The status of each policy and its past runs, from the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row, dict_row

from watchkeeper.retention._queries import QUERIES
from watchkeeper.retention.table._vacuum import Vacuum, read_vacuum

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention._policy import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class PastRun:
    """A run as recorded in the ledger; the latest one may still be running.

    Args:
        id: Its number in the ledger.
        table: The policy's name.
        state: running, completed, failed, refused, stopped or cancelled.
        trigger: schedule or manual.
        started_at: When it was claimed.
        finished_at: When it was closed; None while it runs.
        deleted: Number of rows deleted so far.
        planned: Estimated rows to delete at its start; None if it ended before.
        waiting: Why it waits now: a reason, a colon and details; None if it does not.
        error: Why it did not complete.
        due: Its scheduled time; for a manual run, when it was started.
        attempt: Its number among the attempts at that time.
        partitions: The partitions that it dropped.
        archived: How many of the deleted rows are in the archive.
        restored: How many of these were restored, or were already back in the table.
    """

    id: int
    table: str
    state: str
    trigger: str
    started_at: datetime
    finished_at: datetime | None
    deleted: int
    planned: int | None
    waiting: str | None
    error: str | None
    due: datetime
    attempt: int
    partitions: Sequence[str]
    archived: int
    restored: int

    def rate(self, now: datetime) -> float:
        """Return the rows deleted per second, over the whole run until `now`, the database's time."""
        seconds = ((self.finished_at or now) - self.started_at).total_seconds()
        return self.deleted / seconds if seconds > 0 else 0.0

    def left(self, now: datetime) -> timedelta | None:
        """Estimate the remaining time at `now`, the database's time; None if it is not known."""
        rate = self.rate(now)
        if self.planned is None or rate <= 0:
            return None
        return timedelta(seconds=max(self.planned - self.deleted, 0) / rate)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyStatus:
    """The status of a policy.

    Args:
        policy: The declared policy.
        since: When it was first registered; None before.
        next_due: The time of its next scheduled run.
        last_success: When a run last completed; None if none has.
        last: The latest run; None without one.
        paused_at: Since when it is paused; None if it is not.
        paused_by: Who paused it.
        vacuum: The state of vacuum on its table; None without the table.
        now: The database's time of this status.
    """

    policy: Policy
    since: datetime | None
    next_due: datetime
    last_success: datetime | None
    last: PastRun | None
    paused_at: datetime | None
    paused_by: str | None
    vacuum: Vacuum | None
    now: datetime


async def read_status(
    conn: AsyncConnection[Any], policies: Sequence[Policy], next_due: datetime, now: datetime
) -> list[PolicyStatus]:
    """Return the status of the policies, in their order."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(QUERIES["status"], {"tables": [policy.name for policy in policies]})
        rows = {row["table_name"]: row for row in await cursor.fetchall()}
    vacuum = await read_vacuum(conn, policies)
    return [
        _status_of(policy, rows.get(policy.name, {}), next_due, vacuum.get(policy.name), now)
        for policy in policies
    ]


async def read_activity(
    conn: AsyncConnection[Any], policies: Sequence[Policy]
) -> list[tuple[str, bool, str | None]]:
    """Return for each registered policy its name, whether it is paused, and why its open run waits."""
    tables = [policy.name for policy in policies]
    return await (await conn.execute(QUERIES["activity"], {"tables": tables})).fetchall()


async def read_history(conn: AsyncConnection[Any], policies: Sequence[Policy], limit: int) -> list[PastRun]:
    """Return the runs of the policies, newest first."""
    async with conn.cursor(row_factory=class_row(PastRun)) as cursor:
        parameters = {"tables": [policy.name for policy in policies], "limit": limit}
        await cursor.execute(QUERIES["history"], parameters)
        return await cursor.fetchall()


def _status_of(
    policy: Policy, row: dict[str, Any], next_due: datetime, vacuum: Vacuum | None, now: datetime
) -> PolicyStatus:
    last = None
    if row.get("run") is not None:
        last = PastRun(
            id=row["run"],
            table=policy.name,
            state=row["state"],
            trigger=row["trigger"],
            started_at=row["started_at"],
            finished_at=row["finished_at"],
            deleted=row["rows_deleted"],
            planned=row["rows_planned"],
            waiting=row["waiting"],
            error=row["error"],
            due=row["due_at"],
            attempt=row["attempt"],
            partitions=row["partitions"],
            archived=row["archived"],
            restored=row["restored"],
        )
    return PolicyStatus(
        policy=policy,
        since=row.get("since"),
        next_due=next_due,
        last_success=row.get("last_success"),
        last=last,
        paused_at=row.get("paused_at"),
        paused_by=row.get("paused_by"),
        vacuum=vacuum,
        now=now,
    )

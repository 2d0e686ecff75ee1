"""What a run would delete, by the predicate that it deletes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from psycopg import errors

from watchkeeper.exceptions import PolicyRefusedError
from watchkeeper.retention._query import QUERIES, fetch_row
from watchkeeper.retention._share import COUNT_TIMEOUT_MS, check_share
from watchkeeper.retention._sweep import AgeSpan, first_span
from watchkeeper.retention._target import Target, find_target

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention._holds import Hold
    from watchkeeper.retention._policy import Policy
    from watchkeeper.retention._share import Limits

_LOOKUP_TIMEOUT_MS: Final = 5000
_LOCK_TIMEOUT_MS: Final = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run would do now.

    Args:
        policy: What was declared.
        horizon: Rows older than this would go.
        rows: How many.
        exact: Whether `rows` was counted; otherwise the planner estimates it.
        oldest: Age of the oldest of them; None without one, or where nothing was counted.
        table_rows: About how many rows the table has, as it was last analysed.
        strategy: How the rows would be found: by the index of their age, or by their place.
        holds: What is held of the table.
        held: How many rows would go but for a hold; None where there are too many to count.
        problem: Why nothing would go at all; None if nothing stands in the way.
    """

    policy: Policy
    horizon: datetime
    rows: int = 0
    exact: bool = True
    oldest: datetime | None = None
    table_rows: int = 0
    strategy: Literal["age", "place"] = "age"
    holds: tuple[Hold, ...] = ()
    held: int | None = 0
    problem: str | None = None


async def plan(conn: AsyncConnection[Any], policy: Policy, now: datetime, limits: Limits) -> Plan:
    """Find out what a run would delete; nothing is changed.

    Args:
        conn: The connection of a transaction of its own.
        policy: What was declared.
        now: The database's time.
        limits: What a run may take.

    Raises:
        PolicyRefusedError: The policy may not be carried out.
        RetentionError: The table or its age column does not exist.
    """
    await _limit(conn, _LOOKUP_TIMEOUT_MS)
    target = await (await find_target(conn, policy)).with_holds(conn)
    horizon = policy.horizon(now)
    counted = await _count(conn, target, horizon)
    rows, oldest = counted if counted is not None else (await _estimate(conn, target, horizon), None)
    (total,) = await fetch_row(conn, QUERIES["totals"], {"oid": target.oid})
    problem = None
    try:
        await check_share(conn, target, horizon, limits.share)
    except PolicyRefusedError as refusal:
        problem = str(refusal)
    return Plan(
        policy=policy,
        horizon=horizon,
        rows=rows,
        exact=counted is not None,
        oldest=oldest,
        # Statistics lag behind; there are at least as many rows as were just counted.
        table_rows=max(total, rows),
        strategy="age" if isinstance(await first_span(conn, target, horizon), AgeSpan) else "place",
        holds=target.holds,
        held=await _count_held(conn, target, horizon) if target.holds else 0,
        problem=problem,
    )


async def _limit(conn: AsyncConnection[Any], statement_ms: int) -> None:
    limits = {"statement_ms": str(statement_ms), "lock_ms": str(_LOCK_TIMEOUT_MS)}
    await conn.execute(QUERIES["limits"], limits)


async def _count(
    conn: AsyncConnection[Any], target: Target, horizon: datetime
) -> tuple[int, datetime | None] | None:
    try:
        async with conn.transaction():
            await _limit(conn, COUNT_TIMEOUT_MS)
            rows, oldest = await fetch_row(conn, target.fill(QUERIES["count_eligible"]), {"horizon": horizon})
    except errors.QueryCanceled:
        return None
    return rows, oldest


async def _count_held(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> int | None:
    try:
        async with conn.transaction():
            await _limit(conn, COUNT_TIMEOUT_MS)
            (held,) = await fetch_row(conn, target.fill(QUERIES["count_held"]), {"horizon": horizon})
    except errors.QueryCanceled:
        return None
    return int(held)


async def _estimate(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> int:
    (explained,) = await fetch_row(conn, target.fill(QUERIES["eligible_rows"]), {"horizon": horizon})
    return int(explained[0]["Plan"]["Plan Rows"])

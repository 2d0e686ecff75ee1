"""What a run would delete, by the predicate that it deletes by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from psycopg import errors

from watchkeeper.exceptions import PolicyRefusedError
from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.plan._estimate import estimate_time, measure_size, propose_index
from watchkeeper.retention.run._batch import AgeRange, choose_range
from watchkeeper.retention.run._tuning import Tuning
from watchkeeper.retention.table._partitions import Partitions, explain, find_partitions, shortened
from watchkeeper.retention.table._sample import sample
from watchkeeper.retention.table._share import COUNT_TIMEOUT_MS, check_share
from watchkeeper.retention.table._target import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.database._owner import Owner
    from watchkeeper.retention._holds import Hold
    from watchkeeper.retention._policy import Policy
    from watchkeeper.retention.run._tuning import Tuning
    from watchkeeper.settings import Limits

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
        bytes: About how large they are, with their part of the indexes.
        takes: About how long a run takes.
        oldest: Age of the oldest of them; None without one, or where nothing was counted.
        table_rows: About how many rows the table has, as it was last analysed.
        strategy: How the rows would be found: partitions that are dropped as a whole, then the rest; by the
            index of their age; by their place.
        why: Why so, in words.
        partitions: What would be dropped as a whole.
        index: The statements that make an index of the ages, where there is none that helps.
        holds: What is held of the table.
        held: How many rows would go but for a hold; None where there are too many to count.
        referenced: How many rows would go, were there not others that refer to them; None where there are too
            many to count.
        ageless: How many rows have no age, and stay; None where there are too many to count.
        problem: Why nothing would go at all; None if nothing stands in the way.
    """

    policy: Policy
    horizon: datetime
    rows: int = 0
    exact: bool = True
    bytes: int = 0
    takes: timedelta = timedelta(0)
    oldest: datetime | None = None
    table_rows: int = 0
    strategy: Literal["partitions", "age", "place"] = "age"
    why: str = ""
    partitions: tuple[str, ...] = ()
    index: tuple[str, ...] = ()
    holds: tuple[Hold, ...] = ()
    held: int | None = 0
    referenced: int | None = 0
    ageless: int | None = 0
    problem: str | None = None


async def plan(  # noqa: PLR0913, PLR0917 - one of each part
    conn: AsyncConnection[Any],
    owner: Owner,
    policy: Policy,
    now: datetime,
    limits: Limits,
    tuning: Tuning,
) -> Plan:
    """Return what a run would delete; raise PolicyRefusedError or RetentionError where it could not run."""
    await _limit(conn, _LOOKUP_TIMEOUT_MS)
    target = await (await find_target(conn, policy)).with_holds(conn)
    horizon = policy.horizon(now)
    counted = await _count(conn, target, horizon)
    rows, oldest = counted if counted is not None else (await _estimate(conn, target, horizon), None)
    drawn = await sample(conn, target, horizon)
    problem = None
    try:
        await check_share(conn, target, horizon, drawn, limits.share)
    except PolicyRefusedError as refusal:
        problem = str(refusal)
    partitions = await find_partitions(conn, owner, target, horizon, held=True)
    by_age = isinstance(await choose_range(conn, target, drawn, tuning.index_scan_share), AgeRange)
    size = await measure_size(conn, target)
    # Statistics lag behind; there are at least as many rows as were just counted.
    table_rows = max(size.rows, rows)
    strategy: Literal["age", "place"] = "age" if by_age else "place"
    return Plan(
        policy=policy,
        horizon=horizon,
        rows=rows,
        exact=counted is not None,
        bytes=size.of(rows, partitions.dropped),
        takes=await estimate_time(
            conn,
            target,
            rows=rows,
            table_rows=table_rows,
            dropped=partitions.dropped,
            by_age=by_age,
            budget=limits.budget,
        ),
        oldest=oldest,
        table_rows=table_rows,
        strategy="partitions" if partitions.dropped else strategy,
        why=_why(target, partitions, strategy, drawn.share),
        partitions=tuple(partition.name for partition in partitions.dropped),
        # Where partitions are by age, only the last of the old ones is looked through.
        index=() if partitions.total else await propose_index(conn, target),
        holds=target.holds,
        held=await _look(conn, target, "count_held", {"horizon": horizon}) if target.holds else 0,
        referenced=await _look(conn, target, "count_referenced", {"horizon": horizon})
        if target.references
        else 0,
        ageless=await _count_ageless(conn, target),
        problem=problem,
    )


def _why(target: Target, partitions: Partitions, strategy: str, share: float) -> str:
    why = f"{share:.1%} of a sample is old"
    if strategy == "age":
        why += f" and the index {target.index} leads to it"
    elif not target.indexed:
        why += f" and no index leads with {target.age_column}"
    names = [partition.name for partition in partitions.dropped]
    if names:
        some = f"{len(names)} of {partitions.total} end before the horizon and are dropped as a whole"
        why = f"{some} ({shortened(names)}); what is left by {strategy}: {why}"
    return ". ".join([why, *explain(partitions.kept)]).rstrip(".")


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


async def _count_ageless(conn: AsyncConnection[Any], target: Target) -> int | None:
    (possible,) = await fetch_row(
        conn, QUERIES["may_lack_age"], {"oid": target.oid, "age": target.age_column}
    )
    return await _look(conn, target, "count_ageless", {}) if possible else 0


async def _look(
    conn: AsyncConnection[Any], target: Target, query: str, parameters: Mapping[str, object]
) -> Any | None:
    """Return the one value of a query; None if it takes too long."""
    try:
        async with conn.transaction():
            await _limit(conn, COUNT_TIMEOUT_MS)
            (value,) = await fetch_row(conn, target.fill(QUERIES[query]), parameters)
    except errors.QueryCanceled:
        return None
    return value


async def _estimate(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> int:
    (explained,) = await fetch_row(conn, target.fill(QUERIES["eligible_rows"]), {"horizon": horizon})
    return int(explained[0]["Plan"]["Plan Rows"])

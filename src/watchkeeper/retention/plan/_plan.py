"""What a run would delete, found with the run's own predicate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from psycopg import errors

from watchkeeper.exceptions import PolicyRefusedError
from watchkeeper.retention._queries import QUERIES, fetch_row, set_transaction
from watchkeeper.retention.plan._estimate import estimate_duration, measure_size, propose_index
from watchkeeper.retention.run._batch import AgeRange, choose_range
from watchkeeper.retention.run._share_guard import check_share
from watchkeeper.retention.table._partitions import Partitions, abbreviate, explain_kept, find_partitions
from watchkeeper.retention.table._sample import COUNT_TIMEOUT, sample
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

Strategy = Literal["partitions", "block scan", "index scan"]

_LOOKUP_TIMEOUT: Final = timedelta(seconds=5)
_LOCK_TIMEOUT: Final = timedelta(seconds=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run would delete now.

    Args:
        policy: The policy that was planned.
        horizon: Rows older than this would be deleted.
        rows: Number of rows.
        exact: Whether `rows` was counted; otherwise the planner estimates it.
        bytes: Approximate size of those rows, including their share of the indexes.
        duration: Estimated duration of the run.
        oldest: Timestamp of the oldest of those rows; None if there are none or they were not counted.
        table_rows: Approximate row count of the table as of the last ANALYZE.
        strategy: How the rows are found. With `partitions`, old ones are dropped, then the rest scanned.
        why: Why this strategy was chosen, as a sentence.
        partitions: The partitions that would be dropped.
        index: The statements that create an index on the age column, where one is missing.
        holds: The holds on the table.
        held: Rows that are eligible but for a hold; None if there are too many to count.
        referenced: Rows that are eligible but for references to them; None if there are too many to count.
        ageless: Rows without a timestamp, which are kept; None if there are too many to count.
        problem: Why the run would be refused; None if it would not.
    """

    policy: Policy
    horizon: datetime
    rows: int = 0
    exact: bool = True
    bytes: int = 0
    duration: timedelta = timedelta(0)
    oldest: datetime | None = None
    table_rows: int = 0
    strategy: Strategy = "index scan"
    why: str = ""
    partitions: tuple[str, ...] = ()
    index: tuple[str, ...] = ()
    holds: tuple[Hold, ...] = ()
    held: int | None = 0
    referenced: int | None = 0
    ageless: int | None = 0
    problem: str | None = None


async def plan(  # noqa: PLR0913 - the inputs of a run
    conn: AsyncConnection[Any], owner: Owner, policy: Policy, *, now: datetime, limits: Limits, tuning: Tuning
) -> Plan:
    """Return what a run would delete, within `conn`'s transaction; raises RetentionError if it would fail."""
    await set_transaction(conn, statement=_LOOKUP_TIMEOUT, lock=_LOCK_TIMEOUT)
    target = await (await find_target(conn, policy)).with_holds(conn)
    horizon = policy.horizon(now)
    exact_count = await _fetch_or_timeout(conn, target, "count_eligible", {"horizon": horizon})
    rows, oldest = exact_count or (await estimate_eligible(conn, target, horizon), None)
    sampled = await sample(conn, target, horizon)
    problem = None
    try:
        await check_share(conn, target, horizon, sampled, limits.share)
    except PolicyRefusedError as refusal:
        problem = str(refusal)
    partitions = await find_partitions(conn, owner, target, horizon, check_holds=True)
    index_scan = isinstance(await choose_range(conn, target, sampled, tuning.index_scan_share), AgeRange)
    scan: Strategy = "index scan" if index_scan else "block scan"
    size = await measure_size(conn, target)
    # The statistics may be outdated; there are at least as many rows as were just counted.
    table_rows = max(size.rows, rows)
    return Plan(
        policy=policy,
        horizon=horizon,
        rows=rows,
        exact=exact_count is not None,
        bytes=size.estimate_bytes(rows, partitions.dropped),
        duration=await estimate_duration(
            conn,
            target,
            rows=rows,
            table_rows=table_rows,
            dropped=partitions.dropped,
            index_scan=index_scan,
            budget=limits.budget,
        ),
        oldest=oldest,
        table_rows=table_rows,
        strategy="partitions" if partitions.dropped else scan,
        why=_explain(target, partitions, scan, sampled.share),
        partitions=tuple(partition.name for partition in partitions.dropped),
        # In a table partitioned by the age column, only the partition with the horizon is scanned.
        index=() if partitions.total else await propose_index(conn, target),
        holds=target.holds,
        held=await _count(conn, target, "count_held", {"horizon": horizon}) if target.holds else 0,
        referenced=await _count(conn, target, "count_referenced", {"horizon": horizon})
        if target.references
        else 0,
        ageless=await _count_ageless(conn, target),
        problem=problem,
    )


async def estimate_eligible(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> int:
    """Return how many rows the planner expects to be eligible."""
    (explain_output,) = await fetch_row(conn, target.fill(QUERIES["explain_eligible"]), {"horizon": horizon})
    return int(explain_output[0]["Plan"]["Plan Rows"])


def _explain(target: Target, partitions: Partitions, scan: Strategy, share: float) -> str:
    why = f"{share:.1%} of sampled rows are past the horizon"
    if scan == "index scan":
        why += f" and the index {target.index} finds them"
    elif not target.indexed:
        why += f" and no index begins with {target.age_column}"
    names = [partition.name for partition in partitions.dropped]
    if names:
        dropped = f"{len(names)} of {partitions.total} partitions end before the horizon and are dropped"
        why = f"{dropped} ({abbreviate(names)}); the remaining rows use {scan}: {why}"
    return ". ".join([why, *explain_kept(partitions.kept)]).rstrip(".")


async def _count_ageless(conn: AsyncConnection[Any], target: Target) -> int | None:
    parameters = {"oid": target.oid, "age": target.age_column}
    (nullable,) = await fetch_row(conn, QUERIES["age_is_nullable"], parameters)
    return await _count(conn, target, "count_ageless", {}) if nullable else 0


async def _count(
    conn: AsyncConnection[Any], target: Target, query: str, parameters: Mapping[str, object]
) -> int | None:
    row = await _fetch_or_timeout(conn, target, query, parameters)
    return None if row is None else int(row[0])


async def _fetch_or_timeout(
    conn: AsyncConnection[Any], target: Target, query: str, parameters: Mapping[str, object]
) -> tuple[Any, ...] | None:
    try:
        async with conn.transaction():
            await set_transaction(conn, statement=COUNT_TIMEOUT, lock=_LOCK_TIMEOUT)
            return await fetch_row(conn, target.fill(QUERIES[query]), parameters)
    except errors.QueryCanceled:
        return None

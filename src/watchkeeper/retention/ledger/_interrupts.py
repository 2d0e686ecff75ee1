"""What a run is told while it runs: by its process, by operators, by the ledger.

An operator's word is a mark on the run's row, made under the lock that each transaction of the run takes:
from its commit on nothing more is deleted. A run that waits looks for such marks each second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.exceptions import ConfigurationError, RetentionError
from watchkeeper.retention._queries import QUERIES

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from watchkeeper.retention.ledger._ledger import Claim


class RunLostError(RetentionError):
    """The run was closed by somebody else, because its lease had lapsed."""


class RunInterruptedError(RetentionError):
    """The process that ran it went away in the middle."""


class StopRequestedError(RetentionError):
    """The run was asked to stop, and did so between two transactions."""


class RunPausedError(StopRequestedError):
    """An operator paused its policy."""


class RunCancelledError(RetentionError):
    """An operator wants it to end for good."""


class RunTimeoutError(RetentionError):
    """The run took longer than it may."""


def lost(claim: Claim) -> RunLostError:
    """Return the error of a run that is not ours any more."""
    return RunLostError(
        f"Run {claim.id} on {claim.table_name} was closed by another process, because it gave no sign of life"
        " for the time of its lease: it stops here."
    )


def interrupted(claim: Claim) -> RunInterruptedError:
    """Return the error of a run whose process went away."""
    if claim.trigger == "schedule":
        rest = "the rest is left to the next attempt, or to the next due"
    else:
        rest = "run it again, or leave the rest to the next due"
    return RunInterruptedError(
        f"interrupted: the process that ran it gave no sign of life (run {claim.id}, attempt"
        f" {claim.attempt}); what it deleted is counted; {rest}"
    )


def cancelled(table: str, by: str) -> RunCancelledError:
    """Return the error of a run that an operator ended for good."""
    return RunCancelledError(
        f"The run on {table} was cancelled by {by}: what it has not deleted is left to the next due."
    )


def paused(claim: Claim, by: str) -> RunPausedError:
    """Return the error of a run that stopped because an operator paused its policy."""
    resume = f"`retention resume {claim.table_name}`"
    again = f"{resume} lets its due go on" if claim.trigger == "schedule" else f"{resume}, then run it again"
    return RunPausedError(
        f"The run on {claim.table_name} was stopped, because {by} paused its policy: {again}, and it begins"
        " where it ended."
    )


def obey(claim: Claim, orders: tuple[Any, ...] | None) -> None:
    """Go on, if nobody wants otherwise.

    Args:
        claim: The run.
        orders: What the ledger has: who paused it, who cancelled it; None if it is not ours any more.

    Raises:
        RunLostError: It is not ours any more.
        RunCancelledError: An operator wants it to end for good.
        RunPausedError: An operator wants it to stop for now.
    """
    if orders is None:
        raise lost(claim)
    paused_by, cancelled_by = orders
    if cancelled_by is not None:
        raise cancelled(claim.table_name, cancelled_by)
    if paused_by is not None:
        raise paused(claim, paused_by)


async def look_for_orders(conn: AsyncConnection[Any], claim: Claim) -> None:
    """Go on waiting, if nobody wants otherwise; raises what `obey` does.

    Args:
        conn: Any connection.
        claim: The run.
    """
    found = await conn.execute(QUERIES["orders"], {"run": claim.id, "epoch": claim.epoch})
    obey(claim, await found.fetchone())


async def show_plan(conn: AsyncConnection[Any], claim: Claim, rows: float) -> None:
    """Note about how many rows a run has to delete.

    Args:
        conn: Any connection.
        claim: The run.
        rows: How many.
    """
    parameters = {"run": claim.id, "epoch": claim.epoch, "rows": round(rows)}
    await conn.execute(QUERIES["show_plan"], parameters)


async def show_waiting(conn: AsyncConnection[Any], claim: Claim, reason: str | None) -> None:
    """Note what a run waits for.

    Args:
        conn: Any connection.
        claim: The run.
        reason: One of `REASONS`, a colon and details; None if it goes on.
    """
    parameters = {"run": claim.id, "epoch": claim.epoch, "reason": reason}
    await conn.execute(QUERIES["show_waiting"], parameters)


async def why_not_now(conn: AsyncConnection[Any], table: str) -> RetentionError:
    """Return the error of a run that cannot begin: its policy is paused, or has a run already.

    Args:
        conn: Any connection.
        table: Name of a registered policy.
    """
    # Between the claim that failed and this look, it may have ended.
    return RetentionError(await find_hindrance(conn, table) or f"{table} was being pruned: run it again.")


async def find_hindrance(conn: AsyncConnection[Any], table: str) -> str | None:
    """Say why no run of a policy can begin now: it is paused, or has a run already; None if one can.

    Args:
        conn: Any connection.
        table: Name of a policy.
    """
    paused = await (await conn.execute(QUERIES["paused"], {"table": table})).fetchone()
    if paused is not None and paused[0] is not None:
        return (
            f"{table} is paused by {paused[1]} since {paused[0]:%Y-%m-%d %H:%M:%S %Z}: `retention resume"
            f" {table}` lets it run again."
        )
    row = await (await conn.execute(QUERIES["open_run"], {"table": table})).fetchone()
    if row is None:
        return None
    run, since, lease_until, _ = row
    return (
        f"{table} is being pruned already (run {run}, since {since:%Y-%m-%d %H:%M:%S %Z}): wait for it to"
        f" end. If its process is gone, its lease ends at {lease_until:%Y-%m-%d %H:%M:%S %Z}, and another"
        " can begin after that."
    )


async def pause_policy(conn: AsyncConnection[Any], table: str, by: str) -> int | None:
    """Let no run of a policy begin, and have the one that is going on stop.

    Args:
        conn: The connection of a transaction of its own.
        table: Name of a registered policy.
        by: Who wants that.

    Returns:
        The run that stops; None if none is going on.

    Raises:
        ConfigurationError: It is paused already.
    """
    await _lock(conn, table)
    paused = await (await conn.execute(QUERIES["paused"], {"table": table})).fetchone()
    if paused is not None and paused[0] is not None:
        raise ConfigurationError(
            f"{table} is paused already, since {paused[0]:%Y-%m-%d %H:%M:%S %Z} by {paused[1]}."
        )
    await conn.execute(QUERIES["pause_policy"], {"table": table, "by": by})
    return await _mark(conn, table, by)


async def resume_policy(conn: AsyncConnection[Any], table: str) -> int | None:
    """Let runs of a policy begin again.

    Args:
        conn: The connection of a transaction of its own.
        table: Name of a registered policy.

    Returns:
        The run that had not stopped yet, and goes on; None if there is none.

    Raises:
        ConfigurationError: It is not paused.
    """
    await _lock(conn, table)
    paused = await (await conn.execute(QUERIES["paused"], {"table": table})).fetchone()
    if paused is None or paused[0] is None:
        raise ConfigurationError(f"{table} is not paused: see `retention status`.")
    await conn.execute(QUERIES["resume_policy"], {"table": table})
    return await _mark(conn, table, None)


async def cancel_run(conn: AsyncConnection[Any], table: str, by: str) -> int:
    """Have the run of a policy that is going on end for good.

    Args:
        conn: The connection of a transaction of its own.
        table: Name of a policy.
        by: Who wants that.

    Returns:
        The run.

    Raises:
        ConfigurationError: None is going on, or it was cancelled already.
    """
    await _lock(conn, table)
    marked = await (await conn.execute(QUERIES["cancel_run"], {"table": table, "by": by})).fetchone()
    if marked is not None:
        return int(marked[0])
    run = await (await conn.execute(QUERIES["open_run"], {"table": table})).fetchone()
    if run is not None:
        raise ConfigurationError(f"Run {run[0]} on {table} was cancelled already; it ends in a moment.")
    raise ConfigurationError(
        f"No run of {table} is going on: see `retention status`; `retention pause {table}` keeps the next one"
        " from starting."
    )


async def _lock(conn: AsyncConnection[Any], table: str) -> None:
    await conn.execute(QUERIES["lock_policy"], {"table": table})
    await conn.execute(QUERIES["lock_open_run"], {"table": table})


async def _mark(conn: AsyncConnection[Any], table: str, by: str | None) -> int | None:
    row = await (await conn.execute(QUERIES["pause_run"], {"table": table, "by": by})).fetchone()
    return None if row is None else int(row[0])

"""What ends a run early, and how operators ask for it: pause, resume and cancel.

A command marks the run's row under the lock that each of its transactions takes, so nothing is deleted after
it has committed. A waiting run checks for marks every second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.exceptions import ConfigurationError, RetentionError
from watchkeeper.retention._queries import QUERIES

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from watchkeeper.retention._model import Claim


class RunLostError(RetentionError):
    """Another process closed the run, because its lease had lapsed."""


class RunInterruptedError(RetentionError):
    """The process of the run ended without closing it."""


class StopRequestedError(RetentionError):
    """The run stopped between two transactions, because its process is stopping."""


class RunPausedError(StopRequestedError):
    """An operator paused the policy."""


class RunCancelledError(RetentionError):
    """An operator cancelled the run."""


class RunTimeoutError(RetentionError):
    """The run exceeded its time limit."""


def lost(claim: Claim) -> RunLostError:
    """Return the error of a run that another process has closed."""
    return RunLostError(
        f"Run {claim.id} on {claim.table_name} was closed by another process, because it did not renew its"
        " lease in time. It stops here."
    )


def interrupted(claim: Claim) -> RunInterruptedError:
    """Return the error of a run whose process ended."""
    if claim.trigger == "schedule":
        rest = "the rest is left to the next attempt, or to the next scheduled run"
    else:
        rest = "run it again, or leave the rest to the next scheduled run"
    return RunInterruptedError(
        f"interrupted: its process did not renew the lease (run {claim.id}, attempt {claim.attempt}); the"
        f" rows that it deleted are counted; {rest}"
    )


def cancelled(table: str, by: str) -> RunCancelledError:
    """Return the error of a cancelled run."""
    return RunCancelledError(
        f"The run on {table} was cancelled by {by}: the rest is left to the next scheduled run."
    )


def paused(claim: Claim, by: str) -> RunPausedError:
    """Return the error of a run that stopped because its policy was paused."""
    resume = f"`retention resume {claim.table_name}`"
    again = f"{resume} continues it" if claim.trigger == "schedule" else f"{resume}, then run it again"
    return RunPausedError(
        f"The run on {claim.table_name} was stopped, because {by} paused its policy: {again}; it continues"
        " where it ended."
    )


def raise_if_interrupted(claim: Claim, marks: tuple[Any, ...] | None) -> None:
    """Raise if the run is marked as paused, cancelled or lost (`marks` is None)."""
    if marks is None:
        raise lost(claim)
    paused_by, cancelled_by = marks
    if cancelled_by is not None:
        raise cancelled(claim.table_name, cancelled_by)
    if paused_by is not None:
        raise paused(claim, paused_by)


async def check_interrupts(conn: AsyncConnection[Any], claim: Claim) -> None:
    """Read the marks without a lock, and raise as `raise_if_interrupted`."""
    found = await conn.execute(QUERIES["interrupts"], {"run": claim.id, "epoch": claim.epoch})
    raise_if_interrupted(claim, await found.fetchone())


async def record_planned_rows(conn: AsyncConnection[Any], claim: Claim, rows: float) -> None:
    """Record the approximate number of rows that a run has to delete."""
    parameters = {"run": claim.id, "epoch": claim.epoch, "rows": round(rows)}
    await conn.execute(QUERIES["show_plan"], parameters)


async def show_waiting(conn: AsyncConnection[Any], claim: Claim, reason: str | None) -> None:
    """Record why a run waits: a reason, a colon and details; None if it continues."""
    parameters = {"run": claim.id, "epoch": claim.epoch, "reason": reason}
    await conn.execute(QUERIES["show_waiting"], parameters)


async def cannot_start(conn: AsyncConnection[Any], table: str) -> RetentionError:
    """Return the error of a run that could not be claimed."""
    # The other run may have ended after the claim failed.
    return RetentionError(await find_obstacle(conn, table) or f"{table} was being pruned: run it again.")


async def find_obstacle(conn: AsyncConnection[Any], table: str) -> str | None:
    """Return why no run of a policy can start now: it is paused, or has an open run; None if one can."""
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
        f" end. If its process is gone, its lease ends at {lease_until:%Y-%m-%d %H:%M:%S %Z}, and another run"
        " can begin after that."
    )


async def pause_policy(conn: AsyncConnection[Any], table: str, by: str) -> int | None:
    """Pause a policy and stop its current run; return that run's number, None without one."""
    await _lock(conn, table)
    paused = await (await conn.execute(QUERIES["paused"], {"table": table})).fetchone()
    if paused is not None and paused[0] is not None:
        raise ConfigurationError(
            f"{table} is paused already, since {paused[0]:%Y-%m-%d %H:%M:%S %Z} by {paused[1]}."
        )
    await conn.execute(QUERIES["pause_policy"], {"table": table, "by": by})
    return await _mark(conn, table, by)


async def resume_policy(conn: AsyncConnection[Any], table: str) -> int | None:
    """Resume a policy. Return the number of a run that had not stopped yet and continues."""
    await _lock(conn, table)
    paused = await (await conn.execute(QUERIES["paused"], {"table": table})).fetchone()
    if paused is None or paused[0] is None:
        raise ConfigurationError(f"{table} is not paused: see `retention status`.")
    await conn.execute(QUERIES["resume_policy"], {"table": table})
    return await _mark(conn, table, None)


async def cancel_run(conn: AsyncConnection[Any], table: str, by: str) -> int:
    """Cancel the current run of a policy, and return its number."""
    await _lock(conn, table)
    marked = await (await conn.execute(QUERIES["cancel_run"], {"table": table, "by": by})).fetchone()
    if marked is not None:
        return int(marked[0])
    run = await (await conn.execute(QUERIES["open_run"], {"table": table})).fetchone()
    if run is not None:
        raise ConfigurationError(f"Run {run[0]} on {table} was cancelled already; it ends in a moment.")
    raise ConfigurationError(
        f"{table} has no current run: see `retention status`; `retention pause {table}` keeps the next one"
        " from starting."
    )


async def _lock(conn: AsyncConnection[Any], table: str) -> None:
    await conn.execute(QUERIES["lock_policy"], {"table": table})
    await conn.execute(QUERIES["lock_open_run"], {"table": table})


async def _mark(conn: AsyncConnection[Any], table: str, by: str | None) -> int | None:
    row = await (await conn.execute(QUERIES["pause_run"], {"table": table, "by": by})).fetchone()
    return None if row is None else int(row[0])

"""The ledger of runs: each run is a row that only one replica can insert, under a lease that it renews.

The run and its audit entry are closed in one transaction, by its process or, once the lease has lapsed, by
any other.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
from psycopg.rows import class_row, dict_row

from watchkeeper.audit import append
from watchkeeper.exceptions import AuditError, RetentionError
from watchkeeper.retention._model import Claim, RunResult
from watchkeeper.retention._queries import QUERIES, fetch_row, milliseconds
from watchkeeper.retention.archive._archived_run import read_archive_totals
from watchkeeper.retention.ledger._attempts import next_attempt
from watchkeeper.retention.ledger._interrupts import (
    RunInterruptedError,
    RunPausedError,
    StopRequestedError,
    cancelled,
    cannot_start,
    lost,
    paused,
    raise_if_interrupted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.database import Database
    from watchkeeper.retention._model import State, Trigger
    from watchkeeper.retention._policy import Policy

ACTION: Final = "retention.prune"
ACTOR: Final = "retention-job"

_CLAIM_WAIT: Final = timedelta(seconds=2)  # `restore` locks a policy for a while

LEASE: Final = timedelta(seconds=60)
"""Time without a heartbeat after which a run no longer counts as alive."""


class Ledger:
    """Claims runs, counts what they delete, and closes them; `redact` masks secrets in stored errors."""

    def __init__(self, database: Database, *, redact: Callable[[str], str], lease: timedelta = LEASE) -> None:
        self._database = database
        self._redact = redact
        self.lease = lease

    async def now(self) -> datetime:
        """Read the database's clock."""
        async with self._database.connection() as conn:
            (now,) = await fetch_row(conn, QUERIES["clock"])
        return cast("datetime", now)

    async def register(self, policies: Iterable[Policy]) -> None:
        """Record the declared policies; a policy's schedule starts when it is first registered."""
        async with self._database.transaction() as conn:
            # In the same order, so that replicas that start together cannot deadlock.
            for policy in sorted(policies, key=lambda policy: policy.name):
                await conn.execute(
                    QUERIES["register"],
                    {"table": policy.name, "age_column": policy.age_column, "keep": policy.keep},
                )

    async def claim_scheduled(self, policy: Policy, due_at: datetime) -> Claim | None:
        """Claim the run of a scheduled time, unless it is done, running, or waiting for its next attempt."""
        async with self._database.transaction() as conn:
            async with conn.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(QUERIES["attempts"], {"table": policy.name, "due_at": due_at})
                attempt = next_attempt(await cursor.fetchall(), due_at)
            if attempt is None:
                return None
            try:
                return await self._claim(conn, policy, "schedule", due_at, attempt)
            except psycopg.errors.LockNotAvailable:
                return None  # locked by a command such as `restore`: the next tick tries again

    async def claim_now(self, policy: Policy) -> Claim:
        """Claim a manual run; raises RetentionError if the policy is running, paused or locked."""
        async with self._database.transaction() as conn:
            try:
                claim = await self._claim(conn, policy, "manual", None, 1)
            except psycopg.errors.LockNotAvailable as error:
                raise RetentionError(
                    f"{policy.name} is not pruned now: an operator command has locked its policy, such as"
                    " `retention restore`. Run it again when that has ended."
                ) from error
            if claim is None:
                raise await cannot_start(conn, policy.name)
            return claim

    async def _claim(
        self,
        conn: AsyncConnection[Any],
        policy: Policy,
        trigger: Trigger,
        due_at: datetime | None,
        attempt: int,
    ) -> Claim | None:
        async with conn.transaction(), conn.cursor(row_factory=class_row(Claim)) as cursor:
            await cursor.execute(QUERIES["lock_timeout"], {"lock_ms": milliseconds(_CLAIM_WAIT)})
            await cursor.execute(
                QUERIES["claim"],
                {
                    "table": policy.name,
                    "trigger": trigger,
                    "due_at": due_at,
                    "attempt": attempt,
                    "lease": self.lease,
                    "keep_seconds": policy.keep.total_seconds(),
                },
            )
            claim = await cursor.fetchone()
        if claim is not None:
            await self._try_audit_entry(conn, claim)
        return claim

    async def _try_audit_entry(self, conn: AsyncConnection[Any], claim: Claim) -> None:
        """Write an audit entry and roll it back: a run that cannot be audited does not start."""
        try:
            async with conn.transaction(force_rollback=True):
                await self._append(conn, claim, {"deleted": 0, "run": claim.id})
        except (psycopg.Error, AuditError) as error:
            if conn.broken:
                raise
            raise RetentionError(
                f"{claim.table_name} is not pruned, because its audit entry cannot be written: {error}"
            ) from error

    async def lock(self, conn: AsyncConnection[Any], claim: Claim) -> None:
        """Lock the run, as the first statement of a deleting transaction; raises if interrupted or lost."""
        raise_if_interrupted(claim, await (await conn.execute(QUERIES["lock_run"], _key(claim))).fetchone())

    async def record_deleted(
        self,
        conn: AsyncConnection[Any],
        claim: Claim,
        deleted: int,
        bytes_deleted: int = 0,
        cursor: str | None = None,
    ) -> int:
        """Count what this transaction deleted, renew the lease, and return the total; raises RunLostError.

        `cursor` is how far the first pass has got, as JSON; None leaves it unchanged.
        """
        parameters = {
            **_key(claim),
            "deleted": deleted,
            "bytes_deleted": bytes_deleted,
            "cursor": cursor,
            "lease": self.lease,
        }
        row = await (await conn.execute(QUERIES["record_deleted"], parameters)).fetchone()
        if row is None:
            raise lost(claim)
        return int(row[0])

    async def renew(self, claim: Claim) -> None:
        """Renew the lease while nothing is deleted; raises RunLostError."""
        async with self._database.transaction() as conn:
            await self.record_deleted(conn, claim, 0)

    async def close(self, claim: Claim, state: State, error: BaseException | None = None) -> RunResult:
        """Close the run and write its audit entry in one transaction; raises RunLostError."""
        closed = await self._close(claim, state, error, lapsed=False)
        if closed is None:
            raise lost(claim)
        return closed

    async def find_lapsed(self) -> list[Claim]:
        """Return the open runs whose lease has lapsed."""
        async with self._database.connection() as conn, conn.cursor(row_factory=class_row(Claim)) as cursor:
            await cursor.execute(QUERIES["lapsed_runs"])
            return await cursor.fetchall()

    async def close_lapsed(self, claim: Claim, error: RunInterruptedError) -> RunResult | None:
        """Close a run whose process ended; None if it was closed or has renewed its lease."""
        return await self._close(claim, "failed", error, lapsed=True)

    async def _close(
        self, claim: Claim, state: State, error: BaseException | None, *, lapsed: bool
    ) -> RunResult | None:
        async with self._database.transaction() as conn:
            locked = await conn.execute(QUERIES["lock_to_close"], {**_key(claim), "lapsed": lapsed})
            row = await locked.fetchone()
            if row is None:
                return None
            deleted, bytes_deleted, duration, partitions, cancelled_by, paused_by = row
            # An operator command also applies to a run that ended before noticing it.
            if state in {"stopped", "failed"} and cancelled_by is not None:
                state, error = "cancelled", cancelled(claim.table_name, cancelled_by)
            elif lapsed and paused_by is not None:
                state, error = "stopped", paused(claim, paused_by)
            described = self._describe(error)
            archived = await read_archive_totals(conn, claim.id)
            payload = {
                "deleted": deleted,
                "run": claim.id,
                "status": state,
                "trigger": claim.trigger,
                "due": claim.due_at,
                "attempt": claim.attempt,
                "horizon": claim.horizon,
                "duration_ms": round(duration / timedelta(milliseconds=1)),
                **({"archived": archived} if archived else {}),
                **({"partitions": partitions} if partitions else {}),
                **({"error": described} if described else {}),
            }
            audit_id = await self._append(conn, claim, payload)
            await conn.execute(
                QUERIES["close_run"],
                {
                    "run": claim.id,
                    "state": state,
                    "error": json.dumps(described) if described else None,
                    "audit_id": audit_id,
                },
            )
        return RunResult(
            table=claim.table_name,
            status=state,
            deleted=deleted,
            bytes_deleted=bytes_deleted,
            duration=duration,
            run=claim.id,
            error=error,
        )

    def _describe(self, error: BaseException | None) -> dict[str, str] | None:
        if error is None or (isinstance(error, StopRequestedError) and not isinstance(error, RunPausedError)):
            return None  # the state is enough
        # Mask before joining the lines: some patterns end at a line break.
        message = " ".join(self._redact(str(error)).split())
        # PostgreSQL takes neither lone surrogates (file names that are not UTF-8) nor NUL.
        message = message.encode("utf-8", "backslashreplace").decode().replace("\0", "")
        return {"type": type(error).__name__, "message": message}

    async def _append(self, conn: AsyncConnection[Any], claim: Claim, payload: dict[str, object]) -> int:
        return await append(
            conn, actor_type="system", actor_id=ACTOR, action=ACTION, entity=claim.table_name, payload=payload
        )


def _key(claim: Claim) -> dict[str, object]:
    return {"run": claim.id, "epoch": claim.epoch}

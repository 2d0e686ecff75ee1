"""The ledger of runs: who may run what, what each run deleted, and the audit entry that closes it.

Nothing of this is kept in a process. A run is a row; of all replicas one gets to insert it. It stays open
under a lease that each of its transactions renews, and is closed together with its audit entry, by its owner
or, once the lease has lapsed, by whoever finds it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import psycopg
from psycopg.rows import class_row, dict_row

from watchkeeper.audit import append
from watchkeeper.exceptions import AuditError, RetentionError
from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.archive._segment import read_totals
from watchkeeper.retention.ledger._attempts import next_attempt
from watchkeeper.retention.ledger._interrupts import (
    RunInterruptedError,
    RunPausedError,
    StopRequestedError,
    cancelled,
    lost,
    obey,
    paused,
    why_not_now,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg import AsyncConnection

    from watchkeeper.database import Database
    from watchkeeper.retention._policy import Policy

Trigger = Literal["schedule", "manual"]
State = Literal["completed", "failed", "refused", "stopped", "cancelled"]

ACTION: Final = "retention.prune"
ACTOR: Final = "retention-job"

# How long a claim waits for whoever has the policy locked: whoever restores has it for a while.
_CLAIM_WAIT_MS: Final = "2000"

LEASE: Final = timedelta(seconds=60)
"""How long a run that gives no sign of life is taken for alive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A run that is ours.

    Args:
        id: Its number in the ledger.
        table_name: The policy's name.
        epoch: Ours, as long as the ledger says the same.
        trigger: The schedule, or an operator.
        due_at: When it was due.
        attempt: Its place among the attempts at this due.
        horizon: Rows older than this go; one instant for the whole run.
        started_at: When it was claimed.
        rows_deleted: How many had gone when the ledger was read.
    """

    id: int
    table_name: str
    epoch: int
    trigger: Trigger
    due_at: datetime
    attempt: int
    horizon: datetime
    started_at: datetime
    rows_deleted: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Closed:
    """What a closed run came to.

    Args:
        state: How it ended.
        error: Why it did not complete.
        deleted: How many rows went.
        bytes_deleted: About how many bytes these took.
        duration: From its claim to its end.
        audit_id: Its audit entry.
    """

    state: State
    error: BaseException | None
    deleted: int
    bytes_deleted: int
    duration: timedelta
    audit_id: int


class Ledger:
    """Claims runs, counts what they delete, and closes them.

    Args:
        database: Where the ledger is.
        redact: Masks secrets in an error's text, which ledger and audit log keep for good.
        actor_id: Who acts, in the audit entries.
        lease: How long a run without a sign of life is left alone.
    """

    def __init__(
        self,
        database: Database,
        *,
        redact: Callable[[str], str],
        actor_id: str = ACTOR,
        lease: timedelta = LEASE,
    ) -> None:
        self._database = database
        self._redact = redact
        self._actor_id = actor_id
        self._lease = lease

    @property
    def lease(self) -> timedelta:
        """How long a run without a sign of life is left alone."""
        return self._lease

    async def now(self) -> datetime:
        """Read the database's clock."""
        async with self._database.connection() as conn:
            (now,) = await fetch_row(conn, QUERIES["clock"])
        return cast("datetime", now)

    async def register(self, policies: Iterable[Policy]) -> None:
        """Note the declared policies; from the first time on, their dues count."""
        async with self._database.transaction() as conn:
            # In one order, so that replicas that start together wait for each other and not in a circle.
            for policy in sorted(policies, key=lambda policy: policy.name):
                await conn.execute(
                    QUERIES["register"],
                    {"table": policy.name, "age_column": policy.age_column, "keep": policy.keep},
                )

    async def claim_due(self, policy: Policy, due_at: datetime) -> Claim | None:
        """Claim the run of a due, unless it was done, is being done, or has to wait for its next attempt.

        Args:
            policy: A registered one.
            due_at: The last due of the schedule.

        Raises:
            RetentionError: Its audit entry could not be written; nothing was claimed.
        """
        async with self._database.transaction() as conn:
            async with conn.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(QUERIES["attempts"], {"table": policy.name, "due_at": due_at})
                attempt = next_attempt(await cursor.fetchall(), due_at)
            if attempt is None:
                return None
            try:
                return await self._claim(conn, policy, "schedule", due_at, attempt)
            except psycopg.errors.LockNotAvailable:
                return None  # somebody restores its rows, or changes its holds: a later look finds it free

    async def claim_now(self, policy: Policy) -> Claim:
        """Claim a run that an operator asks for.

        Args:
            policy: A registered one.

        Raises:
            RetentionError: The table is being pruned already, its policy is paused, or the audit entry could
                not be written.
        """
        async with self._database.transaction() as conn:
            try:
                claim = await self._claim(conn, policy, "manual", None, 1)
            except psycopg.errors.LockNotAvailable as error:
                raise RetentionError(
                    f"{policy.name} is not pruned now: an operator's command has its policy locked, such as"
                    " `retention restore`. Run it again when that has ended."
                ) from error
            if claim is None:
                raise await why_not_now(conn, policy.name)
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
            await cursor.execute(QUERIES["lock_timeout"], {"lock_ms": _CLAIM_WAIT_MS})
            await cursor.execute(
                QUERIES["claim"],
                {
                    "table": policy.name,
                    "trigger": trigger,
                    "due_at": due_at,
                    "attempt": attempt,
                    "lease": self._lease,
                    "keep_seconds": policy.keep.total_seconds(),
                },
            )
            claim = await cursor.fetchone()
        if claim is not None:
            await self._try_audit_entry(conn, claim)
        return claim

    async def _try_audit_entry(self, conn: AsyncConnection[Any], claim: Claim) -> None:
        """Write the run's audit entry and take it back: a run that could not be audited does not start."""
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
        """Lock the run, as the first thing in a transaction that deletes.

        Raises:
            RunLostError: It is not ours any more.
            RunPausedError: An operator wants it to stop for now.
            RunCancelledError: An operator wants it to end for good.
        """
        obey(claim, await (await conn.execute(QUERIES["lock"], _key(claim))).fetchone())

    async def move(
        self,
        conn: AsyncConnection[Any],
        claim: Claim,
        deleted: int,
        bytes_deleted: int = 0,
        cursor: str | None = None,
    ) -> int:
        """Count what this transaction deleted, and renew the lease.

        Args:
            conn: The connection of that transaction.
            claim: Our run.
            deleted: How many rows.
            bytes_deleted: About how many bytes these took.
            cursor: How far the first pass has come, as JSON; None leaves it where it is.

        Returns:
            How many rows the run has deleted so far.

        Raises:
            RunLostError: It is not ours any more; the transaction must not commit.
        """
        parameters = {
            **_key(claim),
            "deleted": deleted,
            "bytes_deleted": bytes_deleted,
            "cursor": cursor,
            "lease": self._lease,
        }
        row = await (await conn.execute(QUERIES["move"], parameters)).fetchone()
        if row is None:
            raise lost(claim)
        return int(row[0])

    async def renew(self, claim: Claim) -> None:
        """Give a sign of life while nothing is deleted.

        Raises:
            RunLostError: The run is not ours any more.
        """
        async with self._database.transaction() as conn:
            await self.move(conn, claim, 0)

    async def close(self, claim: Claim, state: State, error: BaseException | None = None) -> Closed:
        """Close our run and write its audit entry, in one transaction.

        Raises:
            RunLostError: It is not ours any more.
        """
        closed = await self._close(claim, state, error, lapsed=False)
        if closed is None:
            raise lost(claim)
        return closed

    async def lapsed(self) -> list[Claim]:
        """List the open runs whose lease has lapsed."""
        async with (
            self._database.connection() as conn,
            conn.cursor(row_factory=class_row(Claim)) as cursor,
        ):
            await cursor.execute(QUERIES["lapsed"])
            return await cursor.fetchall()

    async def close_lapsed(self, claim: Claim, error: RunInterruptedError) -> Closed | None:
        """Close a run whose process went away; None if somebody else did, or it showed a sign of life.

        One that an operator had cancelled is that.
        """
        return await self._close(claim, "failed", error, lapsed=True)

    async def _close(
        self, claim: Claim, state: State, error: BaseException | None, *, lapsed: bool
    ) -> Closed | None:
        async with self._database.transaction() as conn:
            locked = await conn.execute(QUERIES["lock_to_close"], {**_key(claim), "lapsed": lapsed})
            row = await locked.fetchone()
            if row is None:
                return None
            deleted, bytes_deleted, duration, partitions, cancelled_by, paused_by = row
            # What an operator wants holds for a run that ended before it heard, too.
            if state in {"stopped", "failed"} and cancelled_by is not None:
                state, error = "cancelled", cancelled(claim.table_name, cancelled_by)
            elif lapsed and paused_by is not None:
                state, error = "stopped", paused(claim, paused_by)
            described = self._describe(error)
            archived = await read_totals(conn, claim.id)
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
                QUERIES["close"],
                {
                    "run": claim.id,
                    "state": state,
                    "error": json.dumps(described) if described else None,
                    "audit_id": audit_id,
                },
            )
        return Closed(
            state=state,
            error=error,
            deleted=deleted,
            bytes_deleted=bytes_deleted,
            duration=duration,
            audit_id=audit_id,
        )

    def _describe(self, error: BaseException | None) -> dict[str, str] | None:
        if error is None or (isinstance(error, StopRequestedError) and not isinstance(error, RunPausedError)):
            return None  # that it was stopped with its process says it all
        # Masked while it still has its lines, which some of what is masked ends at; then made one.
        message = " ".join(self._redact(str(error)).split())
        # Such as the names of files that are no text: PostgreSQL takes neither.
        message = message.encode("utf-8", "backslashreplace").decode().replace("\0", "")
        return {"type": type(error).__name__, "message": message}

    async def _append(self, conn: AsyncConnection[Any], claim: Claim, payload: dict[str, object]) -> int:
        return await append(
            conn,
            actor_type="system",
            actor_id=self._actor_id,
            action=ACTION,
            entity=claim.table_name,
            payload=payload,
        )


def _key(claim: Claim) -> dict[str, object]:
    return {"run": claim.id, "epoch": claim.epoch}

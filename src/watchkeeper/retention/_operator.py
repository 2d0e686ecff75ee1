"""The operator commands of retention: holds, restore, pause, resume and cancel. Each change is audited."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg

from watchkeeper.audit import append
from watchkeeper.exceptions import ConfigurationError, DatabaseUnavailableError, RetentionError
from watchkeeper.retention._holds import Condition, Hold, add_hold, read_holds, release_hold
from watchkeeper.retention._policy import select_policies
from watchkeeper.retention._queries import QUERIES, fetch_row, set_transaction
from watchkeeper.retention.archive._archived_run import ArchivedRun, read_archived_run
from watchkeeper.retention.archive._restore import Restored, Restorer
from watchkeeper.retention.ledger._interrupts import cancel_run, pause_policy, resume_policy
from watchkeeper.retention.table._sample import COUNT_TIMEOUT
from watchkeeper.retention.table._target import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.database import Database
    from watchkeeper.retention._policy import Policy
    from watchkeeper.retention.archive._archive import Archive
    from watchkeeper.retention.ledger._ledger import Ledger


class Operator:
    """Executes operator commands, and audits each change under the operator's name.

    Each method raises DatabaseUnavailableError if the database cannot be reached, and ConfigurationError if
    the command cannot be applied. `table` is the name of a policy.
    """

    def __init__(
        self, database: Database, ledger: Ledger, policies: Sequence[Policy], archive: Archive | None = None
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._policies = policies
        self._archive = archive

    async def hold(
        self,
        table: str,
        conditions: Iterable[Condition],
        *,
        reason: str,
        owner: str,
        until: datetime | None = None,
    ) -> Hold:
        """Hold rows, regardless of their policy; the current run keeps them too.

        Args:
            table: Name of the policy.
            conditions: A row that meets all of them is held; without any, every row is.
            reason: Why the rows are held.
            owner: Who requested the hold.
            until: When the hold expires; default: when it is released.
        """
        (policy,) = select_policies(self._policies, [table])
        for name, text in (("a reason", reason), ("an owner", owner)):
            if not text.strip():
                raise ConfigurationError(f"A hold needs {name}: it is recorded with the hold.")
        if until is not None and until <= await self._ledger.now():
            raise ConfigurationError("A hold expires in the future, or when it is released.")
        await self._ledger.register(self._policies)
        async with self._database.transaction() as conn:
            hold = await add_hold(conn, table, conditions, reason=reason, owner=owner, until=until)
            try:
                target = await find_target(conn, policy)
            except RetentionError as error:
                raise ConfigurationError(f"The hold was not added: {error}") from error
            problem = await replace(target, holds=(hold,)).find_hold_error(conn)
            if problem is not None:
                raise ConfigurationError(f"The hold was not added: {problem}.")
            await self._audit_hold(conn, "retention.hold", owner, hold)
        return hold

    async def count_held(self, hold: Hold) -> int | None:
        """Count the rows of any age that a hold keeps now; None if that takes more than a few seconds."""
        (policy,) = select_policies(self._policies, [hold.table_name])
        try:
            async with self._database.transaction() as conn:
                await set_transaction(conn, statement=COUNT_TIMEOUT, lock=COUNT_TIMEOUT)
                target = replace(await find_target(conn, policy), holds=(hold,))
                (rows,) = await fetch_row(conn, target.fill(QUERIES["count_hold"]), {})
        except (RetentionError, DatabaseUnavailableError, psycopg.Error):
            return None  # the hold is in force anyway
        return int(rows)

    async def release(self, hold: int, *, released_by: str) -> Hold:
        """Release the hold with this number, in the name of `released_by`."""
        _check_name("releases the hold", released_by)
        async with self._database.transaction() as conn:
            released = await release_hold(conn, hold, released_by=released_by)
            if released is None:
                raise ConfigurationError(f"There is no hold {hold} in force: see `retention hold list`.")
            await self._audit_hold(conn, "retention.release", released_by, released)
        return released

    async def holds(self, *, ended: bool = False) -> tuple[Hold, ...]:
        """Return the holds on the tables of this service; with `ended`, also those that have ended."""
        async with self._database.connection() as conn:
            return await read_holds(conn, [policy.name for policy in self._policies], ended=ended)

    async def archived(self, run: int) -> ArchivedRun:
        """Return what the archive has of the run with this number, which must have ended."""
        async with self._database.connection() as conn:
            return await read_archived_run(conn, run)

    async def restore(
        self, run: int, *, restored_by: str, on_rows: Callable[[int], None] | None = None
    ) -> Restored:
        """Restore the rows that a run deleted, without those that were restored before.

        Args:
            run: Its number.
            restored_by: Who restores them.
            on_rows: Called with the number of rows after each transaction.
        """
        _check_name("restores", restored_by)
        if self._archive is None:
            raise ConfigurationError("There is no archive to restore from: give the retention one.")
        restorer = Restorer(
            self._database,
            self._archive,
            await self.archived(run),
            restored_by=restored_by,
            on_rows=on_rows or (lambda _rows: None),
        )
        return await restorer.restore()

    async def pause(self, table: str, *, by: str) -> int | None:
        """Pause a policy, in the name of `by`, and stop its current run.

        Returns:
            The run that stops at its next transaction; None without one.
        """
        self._check(table, by)
        await self._ledger.register(self._policies)
        async with self._database.transaction() as conn:
            run = await pause_policy(conn, table, by)
            await self._audit(conn, "retention.pause", by, table, run)
        return run

    async def resume(self, table: str, *, by: str) -> int | None:
        """Resume a policy, in the name of `by`; the next tick continues a scheduled run that was stopped.

        Returns:
            The run that had not stopped yet, and continues; None without one.
        """
        self._check(table, by)
        async with self._database.transaction() as conn:
            run = await resume_policy(conn, table)
            await self._audit(conn, "retention.resume", by, table, run)
        return run

    async def cancel(self, table: str, *, by: str) -> int:
        """Cancel the current run of a policy, in the name of `by`; the next scheduled run deletes the rest.

        Returns:
            The run, which ends at its next transaction.
        """
        self._check(table, by)
        async with self._database.transaction() as conn:
            run = await cancel_run(conn, table, by)
            await self._audit(conn, "retention.cancel", by, table, run)
        return run

    def _check(self, table: str, by: str) -> None:
        select_policies(self._policies, [table])
        _check_name("gives this command", by)

    async def _audit(
        self, conn: AsyncConnection[Any], action: str, by: str, table: str, run: int | None
    ) -> None:
        payload = {} if run is None else {"run": run}
        await append(conn, actor_type="user", actor_id=by, action=action, entity=table, payload=payload)

    async def _audit_hold(self, conn: AsyncConnection[Any], action: str, by: str, hold: Hold) -> None:
        await append(
            conn,
            actor_type="user",
            actor_id=by,
            action=action,
            entity=hold.table_name,
            entity_id=str(hold.id),
            payload={"reason": hold.reason, "rows": str(hold), "owner": hold.owner, "until": hold.until},
        )


def _check_name(does: str, name: str) -> None:
    if not name.strip():
        raise ConfigurationError(f"Say who {does}: the audit log records it.")

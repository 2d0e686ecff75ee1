"""What an operator says to retention, checked and audited: holds, restoring, pause, resume and cancel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg

from watchkeeper.audit import append
from watchkeeper.exceptions import ConfigurationError, DatabaseUnavailableError, RetentionError
from watchkeeper.retention._holds import Condition, Hold, add_hold, read_holds, release_hold
from watchkeeper.retention._policy import choose
from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.archive._restore import ArchivedRun, Restored, Restoring, read_archived_run
from watchkeeper.retention.ledger._interrupts import cancel_run, pause_policy, resume_policy
from watchkeeper.retention.table._share import COUNT_TIMEOUT_MS
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
    """Carries out what people want of the retention of a service; each change is audited under their name.

    Args:
        database: Where the tables and the ledger are.
        ledger: Where the policies are registered.
        policies: What is declared.
        archive: Where deleted rows are restored from.
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
        """Keep rows whatever their policy says, from now on, also in a run that is going on; it is audited.

        Args:
            table: Name of the policy.
            conditions: A row that meets all of them is held; without any, each row is.
            reason: Why.
            owner: Who wants it.
            until: When it ends by itself; default: when it is released.

        Raises:
            ConfigurationError: There is no such policy, or a condition cannot be applied to its table.
            DatabaseUnavailableError: The database cannot be reached.
        """
        (policy,) = choose(self._policies, [table])
        for name, text in (("a reason", reason), ("an owner", owner)):
            if not text.strip():
                raise ConfigurationError(f"A hold takes {name}: whoever finds it has to know.")
        if until is not None and until <= await self._ledger.now():
            raise ConfigurationError("A hold ends in the future, or when it is released.")
        await self._ledger.register(self._policies)
        async with self._database.transaction() as conn:
            hold = await add_hold(conn, table, conditions, reason=reason, owner=owner, until=until)
            try:
                target = await find_target(conn, policy)
            except RetentionError as error:
                raise ConfigurationError(f"The hold was not added: {error}") from error
            why = await replace(target, holds=(hold,)).why_not_applied(conn)
            if why is not None:
                raise ConfigurationError(f"The hold was not added: {why}.")
            await self._audit_hold(conn, "retention.hold", owner, hold)
        return hold

    async def count_held(self, hold: Hold) -> int | None:
        """Count the rows that a hold keeps now, whatever their age.

        Args:
            hold: One on a table of this service.

        Returns:
            How many; None where that cannot be counted, such as in the few seconds that it may take.
        """
        (policy,) = choose(self._policies, [hold.table_name])
        limits = {"statement_ms": str(COUNT_TIMEOUT_MS), "lock_ms": str(COUNT_TIMEOUT_MS)}
        try:
            async with self._database.transaction() as conn:
                await conn.execute(QUERIES["limits"], limits)
                target = replace(await find_target(conn, policy), holds=(hold,))
                (rows,) = await fetch_row(conn, target.fill(QUERIES["count_hold"]), {})
        except (RetentionError, DatabaseUnavailableError, psycopg.Error):
            return None  # it is in force all the same
        return int(rows)

    async def release(self, hold: int, *, released_by: str) -> Hold:
        """End a hold; it is audited.

        Args:
            hold: Its number.
            released_by: Who releases it.

        Raises:
            ConfigurationError: There is none of this number that is in force.
            DatabaseUnavailableError: The database cannot be reached.
        """
        if not released_by.strip():
            raise ConfigurationError("Say who releases the hold: whoever looks for its rows has to know.")
        async with self._database.transaction() as conn:
            ended = await release_hold(conn, hold, released_by=released_by)
            if ended is None:
                raise ConfigurationError(f"There is no hold {hold} in force: see `retention hold list`.")
            await self._audit_hold(conn, "retention.release", released_by, ended)
        return ended

    async def holds(self, *, ended: bool = False) -> tuple[Hold, ...]:
        """List the holds on the tables of this service.

        Args:
            ended: Also those that are over.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
        """
        async with self._database.connection() as conn:
            return await read_holds(conn, [policy.name for policy in self._policies], ended=ended)

    async def archived(self, run: int) -> ArchivedRun:
        """Look up what of a run is in the archive.

        Args:
            run: Its number.

        Raises:
            ConfigurationError: There is no such run, it is going on, or nothing of it was archived.
            DatabaseUnavailableError: The database cannot be reached.
        """
        async with self._database.connection() as conn:
            return await read_archived_run(conn, run)

    async def restore(
        self, run: int, *, restored_by: str, on_rows: Callable[[int], None] | None = None
    ) -> Restored:
        """Put the rows back that a run deleted, those that were not put back yet; it is audited.

        Args:
            run: Its number.
            restored_by: Who wants it.
            on_rows: Called with the number of rows after each transaction.

        Raises:
            ConfigurationError: There is no such run, it is going on, or nothing of it was archived.
            DatabaseUnavailableError: The database cannot be reached.
        """
        if not restored_by.strip():
            raise ConfigurationError("Say who restores: whoever finds the rows has to know.")
        if self._archive is None:
            raise ConfigurationError("There is no archive to restore from: give the retention one.")
        found = await self.archived(run)
        restoring = Restoring(
            self._database,
            self._archive,
            found,
            restored_by=restored_by,
            on_rows=on_rows or (lambda _rows: None),
        )
        return await restoring.run()

    async def pause(self, table: str, *, by: str) -> int | None:
        """Let no run of a policy begin, and have the one that is going on stop; it is audited.

        Args:
            table: Name of the policy.
            by: Who wants that.

        Returns:
            The run that stops, at its next transaction; None if none is going on.

        Raises:
            ConfigurationError: There is no such policy, or it is paused already.
            DatabaseUnavailableError: The database cannot be reached.
        """
        self._check(table, by)
        await self._ledger.register(self._policies)
        async with self._database.transaction() as conn:
            run = await pause_policy(conn, table, by)
            await self._audit(conn, "retention.pause", by, table, run)
        return run

    async def resume(self, table: str, *, by: str) -> int | None:
        """Let runs of a policy begin again; what was stopped goes on with the next tick. It is audited.

        Args:
            table: Name of the policy.
            by: Who wants that.

        Returns:
            The run that had not stopped yet, and goes on; None if there is none.

        Raises:
            ConfigurationError: There is no such policy, or it is not paused.
            DatabaseUnavailableError: The database cannot be reached.
        """
        self._check(table, by)
        async with self._database.transaction() as conn:
            run = await resume_policy(conn, table)
            await self._audit(conn, "retention.resume", by, table, run)
        return run

    async def cancel(self, table: str, *, by: str) -> int:
        """End the run of a policy that is going on for good: the rest waits for the next due. It is audited.

        Args:
            table: Name of the policy.
            by: Who wants that.

        Returns:
            The run, which ends at its next transaction.

        Raises:
            ConfigurationError: There is no such policy, or no run of it that is going on.
            DatabaseUnavailableError: The database cannot be reached.
        """
        self._check(table, by)
        async with self._database.transaction() as conn:
            run = await cancel_run(conn, table, by)
            await self._audit(conn, "retention.cancel", by, table, run)
        return run

    def _check(self, table: str, by: str) -> None:
        choose(self._policies, [table])
        if not by.strip():
            raise ConfigurationError("Say who wants that: whoever finds it in the audit log has to know.")

    async def _audit(
        self, conn: AsyncConnection[Any], action: str, who: str, table: str, run: int | None
    ) -> None:
        payload = {} if run is None else {"run": run}
        await append(conn, actor_type="user", actor_id=who, action=action, entity=table, payload=payload)

    async def _audit_hold(self, conn: AsyncConnection[Any], action: str, who: str, hold: Hold) -> None:
        await append(
            conn,
            actor_type="user",
            actor_id=who,
            action=action,
            entity=hold.table_name,
            entity_id=str(hold.id),
            payload={
                "reason": hold.reason,
                "rows": str(hold),
                "owner": hold.owner,
                "until": hold.until,
            },
        )

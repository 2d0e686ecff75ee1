"""Retention of one service: its policies carried out when they are due, once over all replicas.

Purpose: rows that are older than their policy keeps them go, a bounded number at a time, and each run leaves
an entry in the audit log.

Lines:
    `{type: "job", name: "retention", status: "scheduled", due}` when the policies were registered, and when a
    run was stopped with its process (it goes on elsewhere); `started`, then `completed` or `failed` (level
    error, with `error`) around all that was due; `stopped` where an operator stopped his own run.
    `{type: "retention", table, deleted, status, run, duration}` for each run; level error, with `error`, if
    it failed or was refused; `msg` tells which old partitions could not be dropped as a whole, and why. While
    it runs: `waiting` and `resumed`, with `reason`; once, `blind` with `msg`.

Metrics: those of `RetentionMetrics`: what this process does, what the ledger says, what the tables hold.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import psycopg

from watchkeeper.exceptions import AuditError, RetentionError
from watchkeeper.retention._log_lines import JobLines
from watchkeeper.retention._operator import Operator
from watchkeeper.retention._policy import Policy, check_policies, choose
from watchkeeper.retention.archive._archive import Archive, check_archive
from watchkeeper.retention.ledger._attempts import RETRY_WAITS
from watchkeeper.retention.ledger._interrupts import find_hindrance, interrupted
from watchkeeper.retention.ledger._ledger import ACTOR, LEASE, Claim, Ledger
from watchkeeper.retention.ledger._status import PastRun, PolicyStatus, read_doing, read_history, read_status
from watchkeeper.retention.plan._backlog import BacklogWatch
from watchkeeper.retention.plan._plan import Plan, plan
from watchkeeper.retention.run._pressure import PressureWatch
from watchkeeper.retention.run._run import RunResult, run
from watchkeeper.retention.table._references import order_policies
from watchkeeper.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime, timedelta

    from watchkeeper.database import Database
    from watchkeeper.logs import Logging
    from watchkeeper.retention._metrics import RetentionMetrics

    Progress = Callable[[str, int], None]
    """Called with the policy's name and the number of rows, after each transaction that deleted some."""

# What ends one policy's turn and not the others'; a database that is away ends all of them.
_TROUBLE_OF_ONE: Final = (RetentionError, AuditError, psycopg.Error)


class Calendar(Protocol):
    """What is due when; `watchkeeper.retention.Schedule` is one."""

    def due_before(self, now: datetime) -> datetime:
        """Return the last due not later than `now`."""

    def due_after(self, now: datetime) -> datetime:
        """Return the first due later than `now`."""


class Retention:
    """Carries the policies of a service out.

    Args:
        database: Where the tables and the ledger are.
        policies: What is kept how long; at most one a table.
        schedule: When the runs are due.
        metrics: What counts.
        logging: Where the lines go, and what masks secrets in the errors that the ledger keeps.
        job: Name of the job in its lines.
        actor_id: Who acts, in the audit entries.
        lease: How long a run without a sign of life is left alone, before somebody closes it.
        limits: What a run may take, unless an operator says more.
        archive: Where the policies that archive write their rows.
        free_space: Returns how many bytes are free, and how many there are, where the database's files are;
            default: nobody knows.

    Raises:
        PolicyRefusedError: Two policies are on one table.
        ConfigurationError: A policy archives, and there is no archive.
    """

    def __init__(  # noqa: PLR0913 - it joins the parts
        self,
        database: Database,
        policies: Iterable[Policy],
        *,
        schedule: Calendar,
        metrics: RetentionMetrics,
        logging: Logging,
        job: str = "retention",
        actor_id: str = ACTOR,
        lease: timedelta = LEASE,
        limits: Limits = Limits(),  # noqa: B008 - it never changes
        archive: Archive | None = None,
        free_space: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> None:
        self._database = database
        self._policies = check_policies(policies)
        self._archive = archive
        check_archive(self._policies, archive)
        self._schedule = schedule
        self._ledger = Ledger(database, redact=logging.redactor.text, actor_id=actor_id, lease=lease)
        self.operator: Final = Operator(database, self._ledger, self._policies, archive)
        self._metrics = metrics
        self.backlog: Final = BacklogWatch(database, self._policies, metrics)
        self._lines = JobLines(logging, job)
        self.limits = limits
        self._watch = PressureWatch(database, free_space=free_space, lines=self._lines)
        self._stopping = asyncio.Event()
        self._registered = False
        # Tables whose run could not even be claimed: how often in a row, and when to try again.
        self._held_up: dict[str, tuple[int, float]] = {}
        self._unclosable: set[int] = set()

    @property
    def lines(self) -> JobLines:
        """Where the job's lines are written."""
        return self._lines

    def next_due(self, now: datetime) -> datetime:
        """Return when the next run is due after `now`."""
        return self._schedule.due_after(now)

    def interrupt(self) -> None:
        """Stop what runs at its next transaction's end, close it, and start nothing more."""
        self._stopping.set()

    async def register(self) -> None:
        """Note the policies in the database: from the first time on, their dues count.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
        """
        await self._ledger.register(self._policies)
        self._registered = True
        self._lines.scheduled(self._schedule.due_after(await self._ledger.now()))

    async def tick(self) -> list[RunResult]:
        """Close what others left open, then run what is due and not yet done by anybody.

        Returns:
            What was run or closed here; most of the time nothing.

        Raises:
            DatabaseUnavailableError: The database cannot be reached; the next tick goes on.
        """
        if not self._registered:
            await self.register()
        results: list[RunResult] = []
        try:
            await self._close_lapsed(results)
            due = self._schedule.due_before(await self._ledger.now())
            for policy in await self._in_order(self._policies):
                if not self._stopping.is_set():
                    await self._run_if_due(policy, due, results)
        finally:
            self._lines.finished(results)
        return results

    async def run_now(
        self,
        tables: Iterable[str] | None = None,
        progress: Progress | None = None,
        *,
        limits: Limits | None = None,
    ) -> list[RunResult]:
        """Run policies because an operator wants it, due or not.

        Args:
            tables: Names of the policies; default all.
            progress: Told of rows as they go.
            limits: What each run may take; default as for the schedule.

        Raises:
            ConfigurationError: There is no such policy.
            DatabaseUnavailableError: The database cannot be reached.
        """
        chosen = choose(self._policies, tables)
        await self._ledger.register(self._policies)
        results: list[RunResult] = []
        try:
            await self._close_lapsed(results)
            results.clear()  # what others left open is closed and told of, and not the operator's run
            for policy in await self._in_order(chosen):
                try:
                    claim = await self._ledger.claim_now(policy)
                except _TROUBLE_OF_ONE as error:
                    self._note(RunResult(table=policy.name, status="failed", error=error), results)
                else:
                    await self._run(policy, claim, results, progress, limits)
        finally:
            self._lines.finished(results, by_hand=True)
        return results

    async def plan(self, tables: Iterable[str] | None = None, *, limits: Limits | None = None) -> list[Plan]:
        """Find out what runs would delete now; nothing is changed.

        Args:
            tables: Names of the policies; default all.
            limits: What each run may take; default as for the schedule.

        Raises:
            ConfigurationError: There is no such policy.
            DatabaseUnavailableError: The database cannot be reached.
        """
        chosen = choose(self._policies, tables)
        now = await self._ledger.now()
        plans = []
        for policy in chosen:
            try:
                async with self._database.transaction() as conn, self._database.owner() as owner:
                    hindrance = await find_hindrance(conn, policy.name)
                    found = await plan(conn, owner, policy, now, limits or self.limits)
                plans.append(replace(found, problem=hindrance or found.problem))
            except _TROUBLE_OF_ONE as error:
                plans.append(Plan(policy=policy, horizon=policy.horizon(now), problem=str(error)))
        return plans

    async def status(self, tables: Iterable[str] | None = None) -> list[PolicyStatus]:
        """Read how the policies stand.

        Args:
            tables: Names of the policies; default all.

        Raises:
            ConfigurationError: There is no such policy.
            DatabaseUnavailableError: The database cannot be reached.
        """
        chosen = choose(self._policies, tables)
        now = await self._ledger.now()
        async with self._database.connection() as conn:
            return await read_status(conn, chosen, self._schedule.due_after(now), now)

    async def history(self, tables: Iterable[str] | None = None, *, limit: int = 20) -> list[PastRun]:
        """Read what was run, the latest first.

        Args:
            tables: Names of the policies; default all.
            limit: How many runs at most.

        Raises:
            ConfigurationError: There is no such policy.
            DatabaseUnavailableError: The database cannot be reached.
        """
        chosen = choose(self._policies, tables)
        async with self._database.connection() as conn:
            return await read_history(conn, chosen, limit)

    async def refresh_metrics(self) -> None:
        """Read from the ledger what any process of the service did, and now and then what is left to do.

        Raises:
            DatabaseUnavailableError: The database cannot be reached; the metrics stay as they are.
        """
        for status in await self.status():
            if status.since is not None:
                self._metrics.show(status.policy.name, status.since, status.last_success)
        holds = Counter(hold.table_name for hold in await self.operator.holds())
        for policy in self._policies:
            self._metrics.show_holds(policy.name, holds[policy.name])
        async with self._database.connection() as conn:
            for table, paused, waiting in await read_doing(conn, self._policies):
                self._metrics.show_doing(table, paused=paused, waiting=waiting)
        await self.backlog.look()

    async def _in_order(self, policies: Sequence[Policy]) -> Sequence[Policy]:
        """Return policies children first: what refers to a row goes before it."""
        if len(policies) < 2:
            return policies
        try:
            async with self._database.connection() as conn:
                return await order_policies(conn, policies)
        except psycopg.Error:  # any order is right, only slower: what is referred to goes with a later run
            return policies

    async def _run_if_due(self, policy: Policy, due: datetime, results: list[RunResult]) -> None:
        failures, not_before = self._held_up.get(policy.name, (0, 0.0))
        if time.monotonic() < not_before:
            return
        try:
            claim = await self._ledger.claim_due(policy, due)
        except _TROUBLE_OF_ONE as error:
            wait = RETRY_WAITS[min(failures, len(RETRY_WAITS) - 1)].total_seconds()
            self._held_up[policy.name] = (failures + 1, time.monotonic() + wait)
            self._note(RunResult(table=policy.name, status="failed", error=error), results)
            return
        self._held_up.pop(policy.name, None)
        if claim is not None:
            await self._run(policy, claim, results)

    async def _run(
        self,
        policy: Policy,
        claim: Claim,
        results: list[RunResult],
        progress: Progress | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._lines.started()

        def on_rows(rows: int) -> None:
            self._metrics.count_rows(policy.name, rows)
            if progress is not None:
                progress(policy.name, rows)

        result = await run(
            self._database,
            self._ledger,
            policy,
            claim,
            limits=limits or self.limits,
            stopping=self._stopping,
            on_rows=on_rows,
            archive=self._archive,
            watch=self._watch,
        )
        self._note(result, results)

    async def _close_lapsed(self, results: list[RunResult]) -> None:
        for claim in await self._ledger.lapsed():
            try:
                closed = await self._ledger.close_lapsed(claim, interrupted(claim))
            except _TROUBLE_OF_ONE as failure:
                # Its table is not pruned until it can be closed; that is told once, not with each tick.
                if claim.id not in self._unclosable:
                    self._unclosable.add(claim.id)
                    result = RunResult(
                        table=claim.table_name,
                        status="failed",
                        deleted=claim.rows_deleted,
                        run=claim.id,
                        error=failure,
                    )
                    self._note(result, results)
                continue
            if closed is None:
                continue
            result = RunResult(
                table=claim.table_name,
                status=closed.state,
                deleted=closed.deleted,
                bytes_deleted=closed.bytes_deleted,
                duration=closed.duration,
                run=claim.id,
                error=closed.error,
            )
            self._note(result, results)

    def _note(self, result: RunResult, results: list[RunResult]) -> None:
        results.append(result)
        if not result.left_open:
            self._metrics.count_run(result)
        self._lines.ran(result)

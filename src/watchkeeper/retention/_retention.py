"""Retention of one service: runs its policies on schedule, once across all replicas.

Purpose: delete rows older than their policy's retention period, in bounded batches. Each run writes an entry
to the audit log.

Lines:
    `{type: "job", name: "retention", status: "scheduled", due}` when the policies were registered, and when a
    run was stopped because its process stopped (another process continues it); `started`, then `completed` or
    `failed` (level error, with `error`) around the runs of one tick; `stopped` when a manual run was stopped.
    `{type: "retention", table, deleted, status, run, duration}` for each run; level error, with `error`, if
    it failed or was refused; `msg` says which old partitions could not be dropped, and why. During a run:
    `waiting` and `resumed`, with `reason`. `missing_privilege`, with `msg`, is logged once.

Metrics: see `RetentionMetrics`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import psycopg

from watchkeeper.exceptions import AuditError, RetentionError
from watchkeeper.retention._log_lines import JobLog
from watchkeeper.retention._model import Claim, Observers, RunObserver, RunResult
from watchkeeper.retention._operator import Operator
from watchkeeper.retention._policy import Policy, check_policies, select_policies
from watchkeeper.retention.archive._archive import Archive, check_archive
from watchkeeper.retention.ledger._attempts import RETRY_WAITS
from watchkeeper.retention.ledger._interrupts import find_obstacle, interrupted
from watchkeeper.retention.ledger._ledger import LEASE, Ledger
from watchkeeper.retention.ledger._status import (
    PastRun,
    PolicyStatus,
    read_activity,
    read_history,
    read_status,
)
from watchkeeper.retention.plan._backlog import BacklogWatch
from watchkeeper.retention.plan._plan import Plan, plan
from watchkeeper.retention.run._context import Run
from watchkeeper.retention.run._pressure import PressureWatch
from watchkeeper.retention.run._run import execute
from watchkeeper.retention.run._tuning import Tuning
from watchkeeper.retention.table._references import order_policies
from watchkeeper.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime, timedelta

    from watchkeeper.database import Database
    from watchkeeper.logs._logging import Logging
    from watchkeeper.retention._metrics import RetentionMetrics

# Errors that end the run of one policy; a database outage ends the whole tick.
_POLICY_ERRORS: Final = (RetentionError, AuditError, psycopg.Error)


class Calendar(Protocol):
    """Scheduled times; `Schedule` implements it."""

    def last_before(self, now: datetime) -> datetime:
        """Return the last scheduled time up to `now`."""

    def next_after(self, now: datetime) -> datetime:
        """Return the first scheduled time after `now`."""


class Retention:
    """Runs the retention policies of a service.

    Its methods raise ConfigurationError if there is no policy with a given name, and DatabaseUnavailableError
    if the database cannot be reached.

    Args:
        database: The database with the tables and the ledger.
        policies: The policies, at most one per table.
        schedule: When the policies run.
        metrics: Records run metrics.
        logging: Writes log lines; its redactor masks secrets in errors that the ledger stores.
        lease: Time without a heartbeat after which another process may close a run; default 60 seconds.
        limits: Limits of each run, unless an operator overrides them.
        archive: Stores the rows of policies that archive.
        free_space: Returns the free and the total bytes of the disk with the database's files; default:
            unknown.
        tuning: Internal sizes and waits of a run.

    Raises:
        PolicyRefusedError: Two policies apply to the same table.
        ConfigurationError: A policy archives, and there is no archive.
    """

    def __init__(  # noqa: PLR0913 - composition root
        self,
        database: Database,
        policies: Iterable[Policy],
        *,
        schedule: Calendar,
        metrics: RetentionMetrics,
        logging: Logging,
        lease: timedelta = LEASE,
        limits: Limits = Limits(),  # noqa: B008 - immutable default
        archive: Archive | None = None,
        free_space: Callable[[], tuple[int, int] | None] = lambda: None,
        tuning: Tuning = Tuning(),  # noqa: B008 - immutable default
    ) -> None:
        self._database = database
        self._policies = check_policies(policies)
        self._archive = archive
        check_archive(self._policies, archive)
        self._schedule = schedule
        self._ledger = Ledger(database, redact=logging.redactor.text, lease=lease)
        self.operator: Final = Operator(database, self._ledger, self._policies, archive)
        self._metrics = metrics
        self.backlog: Final = BacklogWatch(database, self._policies, metrics.set_backlog)
        self.log: Final = JobLog(logging)
        self._observers = Observers(metrics, self.log)
        self.limits = limits
        self._tuning = tuning
        self._pressure = PressureWatch(
            database, free_space=free_space, on_missing_privilege=self.log.missing_privilege
        )
        self._stop = asyncio.Event()
        self._registered = False
        # Consecutive failed claims by table, and when to try again.
        self._failed_claims: dict[str, tuple[int, float]] = {}
        self._reported_close_failures: set[int] = set()

    def next_due(self, now: datetime) -> datetime:
        """Return when the next run is scheduled after `now`."""
        return self._schedule.next_after(now)

    def interrupt(self) -> None:
        """Stop and close the current run after its transaction, and start no other run."""
        self._stop.set()

    async def register(self) -> None:
        """Record the policies in the database; a policy's schedule starts when it is first registered."""
        await self._ledger.register(self._policies)
        self._registered = True
        self.log.job_scheduled(self._schedule.next_after(await self._ledger.now()))

    async def tick(self) -> list[RunResult]:
        """Close runs whose lease has lapsed, then run each policy whose scheduled time has come.

        Returns:
            The runs that this process ran or closed; usually none.
        """
        if not self._registered:
            await self.register()
        results: list[RunResult] = []
        try:
            results += await self._close_lapsed()
            due = self._schedule.last_before(await self._ledger.now())
            for policy in await self._order_by_reference(self._policies):
                if self._stop.is_set():
                    break
                result = await self._run_if_due(policy, due)
                if result is not None:
                    results.append(result)
        finally:
            self.log.job_finished(results)
        return results

    async def run_now(
        self,
        tables: Iterable[str] | None = None,
        *,
        limits: Limits | None = None,
        observer: RunObserver | None = None,
    ) -> list[RunResult]:
        """Run policies now, regardless of the schedule.

        Args:
            tables: Names of the policies; default all.
            limits: Limits of each run; default those of scheduled runs.
            observer: Receives the events of these runs, in addition to the log and the metrics.
        """
        chosen = select_policies(self._policies, tables)
        await self._ledger.register(self._policies)
        observers = self._observers if observer is None else Observers(self._observers, observer)
        results: list[RunResult] = []
        try:
            await self._close_lapsed()
            for policy in await self._order_by_reference(chosen):
                try:
                    claim = await self._ledger.claim_now(policy)
                except _POLICY_ERRORS as error:
                    result = RunResult(table=policy.name, status="failed", error=error)
                    observers.finished(result)
                else:
                    result = await self._run(policy, claim, limits or self.limits, observers)
                results.append(result)
        finally:
            self.log.job_finished(results, manual=True)
        return results

    async def plan(self, tables: Iterable[str] | None = None, *, limits: Limits | None = None) -> list[Plan]:
        """Return what runs would delete now, without changing anything.

        Args:
            tables: Names of the policies; default all.
            limits: Limits of each run; default those of scheduled runs.
        """
        chosen = select_policies(self._policies, tables)
        now = await self._ledger.now()
        plans = []
        for policy in chosen:
            try:
                async with self._database.transaction() as conn, self._database.owner() as owner:
                    obstacle = await find_obstacle(conn, policy.name)
                    planned = await plan(
                        conn, owner, policy, now=now, limits=limits or self.limits, tuning=self._tuning
                    )
                plans.append(replace(planned, problem=obstacle or planned.problem))
            except _POLICY_ERRORS as error:
                plans.append(Plan(policy=policy, horizon=policy.horizon(now), problem=str(error)))
        return plans

    async def status(self, tables: Iterable[str] | None = None) -> list[PolicyStatus]:
        """Return the status of the policies with these names; default all."""
        chosen = select_policies(self._policies, tables)
        now = await self._ledger.now()
        async with self._database.connection() as conn:
            return await read_status(conn, chosen, self._schedule.next_after(now), now)

    async def history(self, tables: Iterable[str] | None = None, *, limit: int = 20) -> list[PastRun]:
        """Return past runs, newest first.

        Args:
            tables: Names of the policies; default all.
            limit: Maximum number of runs to return.
        """
        chosen = select_policies(self._policies, tables)
        async with self._database.connection() as conn:
            return await read_history(conn, chosen, limit)

    async def refresh_metrics(self) -> None:
        """Set the gauges from the ledger, and once a minute the backlog; an outage leaves them unchanged."""
        for status in await self.status():
            if status.since is not None:
                self._metrics.set_policy(status.policy.name, status.since, status.last_success)
        holds = Counter(hold.table_name for hold in await self.operator.holds())
        for policy in self._policies:
            self._metrics.set_holds(policy.name, holds[policy.name])
        async with self._database.connection() as conn:
            for table, paused, waiting in await read_activity(conn, self._policies):
                self._metrics.set_activity(table, paused=paused, waiting=waiting)
        await self.backlog.refresh()

    async def _order_by_reference(self, policies: Sequence[Policy]) -> Sequence[Policy]:
        """Return the policies with referencing tables first, so that referenced rows become eligible."""
        if len(policies) < 2:
            return policies
        try:
            async with self._database.connection() as conn:
                return await order_policies(conn, policies)
        except psycopg.Error:  # any order is correct; a later run deletes the remaining rows
            return policies

    async def _run_if_due(self, policy: Policy, due: datetime) -> RunResult | None:
        failures, not_before = self._failed_claims.get(policy.name, (0, 0.0))
        if time.monotonic() < not_before:
            return None
        try:
            claim = await self._ledger.claim_scheduled(policy, due)
        except _POLICY_ERRORS as error:
            wait = RETRY_WAITS[min(failures, len(RETRY_WAITS) - 1)].total_seconds()
            self._failed_claims[policy.name] = (failures + 1, time.monotonic() + wait)
            result = RunResult(table=policy.name, status="failed", error=error)
            self._observers.finished(result)
            return result
        self._failed_claims.pop(policy.name, None)
        return None if claim is None else await self._run(policy, claim, self.limits, self._observers)

    async def _run(self, policy: Policy, claim: Claim, limits: Limits, observer: RunObserver) -> RunResult:
        self.log.job_started()
        result = await execute(
            Run(
                database=self._database,
                ledger=self._ledger,
                policy=policy,
                claim=claim,
                limits=limits,
                stop=self._stop,
                observer=observer,
                pressure=self._pressure,
                tuning=self._tuning,
                archive=self._archive,
            )
        )
        observer.finished(result)
        return result

    async def _close_lapsed(self) -> list[RunResult]:
        results = []
        for claim in await self._ledger.find_lapsed():
            try:
                result = await self._ledger.close_lapsed(claim, interrupted(claim))
            except _POLICY_ERRORS as error:
                # Its policy cannot run until this run is closed; report it once, not on every tick.
                if claim.id in self._reported_close_failures:
                    continue
                self._reported_close_failures.add(claim.id)
                result = RunResult(
                    table=claim.table_name,
                    status="failed",
                    deleted=claim.rows_deleted,
                    run=claim.id,
                    error=error,
                )
            if result is not None:
                self._observers.finished(result)
                results.append(result)
        return results

"""The metrics of retention: runs of this process, the state in the ledger, the backlog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from watchkeeper.retention._model import REASONS, RunObserver, State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from watchkeeper.metrics import Registry
    from watchkeeper.retention._model import Backlog, RunResult
    from watchkeeper.retention._policy import Policy

# `stopped` is not an outcome: the next run continues.
STATUSES: Final = tuple(state for state in get_args(State) if state != "stopped")

# The ledger's text starts with one of these and a colon; any other counts as the last one.
WAITING_REASONS: Final = (*REASONS, "other")

_DURATION_BUCKETS_S: Final = (0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)


class RetentionMetrics(RunObserver):
    """Counts the runs of this process, and shows the state of the policies."""

    def __init__(self, registry: Registry, policies: Iterable[Policy]) -> None:
        policies = tuple(policies)
        each = [{"table": policy.name} for policy in policies]
        self._runs = registry.counter(
            "retention_runs_total",
            "Retention runs that ended, by table and how they ended.",
            ("table", "status"),
            known=[{**table, "status": status} for table in each for status in STATUSES],
        )
        self._rows = registry.counter(
            "retention_rows_deleted_total", "Rows that retention deleted.", ("table",), known=each
        )
        self._bytes = registry.counter(
            "retention_bytes_deleted_total",
            "About how many bytes the deleted rows took, counted when their run ends.",
            ("table",),
            known=each,
        )
        self._duration = registry.histogram(
            "retention_run_duration_seconds",
            "How long retention runs took.",
            ("table",),
            buckets=_DURATION_BUCKETS_S,
            known=each,
        )
        self._success = registry.gauge(
            "retention_last_success_timestamp_seconds",
            "When retention last completed for the table, by any process, as a unix time.",
            ("table",),
        )
        self._since = registry.gauge(
            "retention_policy_since_timestamp_seconds",
            "When the table's policy was first declared, as a unix time.",
            ("table",),
        )
        self._keep = registry.gauge(
            "retention_keep_seconds", "How long the table's policy keeps a row.", ("table",)
        )
        self._holds = registry.gauge("retention_holds", "Holds that are in force on the table.", ("table",))
        self._paused = registry.gauge(
            "retention_paused",
            "Whether the table's policy is paused by an operator (1) or not (0).",
            ("table",),
        )
        self._waiting = registry.gauge(
            "retention_waiting",
            "Whether a run of the table waits (1), and what for; 0 for all reasons while none waits.",
            ("table", "reason"),
            known=[{**table, "reason": reason} for table in each for reason in WAITING_REASONS],
        )
        self._oldest = registry.gauge(
            "retention_oldest_eligible_timestamp_seconds",
            "Age of the oldest row that is past its horizon and not held, as a unix time; without an index on"
            " the age it is the oldest of a sample. Missing without such a row.",
            ("table",),
        )
        self._backlog = registry.gauge(
            "retention_backlog_rows",
            "Rows that are past their horizon and not held; an estimate from a sample where they are over a"
            " thousand, or their age has no index.",
            ("table",),
        )
        for policy in policies:
            self._keep.labels(table=policy.name).set(policy.keep.total_seconds())

    def deleted(self, table: str, rows: int) -> None:
        """Count deleted rows."""
        self._rows.labels(table=table).inc(rows)

    def finished(self, result: RunResult) -> None:
        """Count a run, unless it was left open: the process that closes it counts it."""
        if result.left_open:
            return
        self._bytes.labels(table=result.table).inc(result.bytes_deleted)
        if result.status in STATUSES:
            self._runs.labels(table=result.table, status=result.status).inc()
            if result.duration:  # zero where it was never claimed or closed
                self._duration.labels(table=result.table).observe(result.duration.total_seconds())

    def set_holds(self, table: str, holds: int) -> None:
        """Set the number of holds on a table."""
        self._holds.labels(table=table).set(holds)

    def set_activity(self, table: str, *, paused: bool, waiting: str | None) -> None:
        """Set whether a policy is paused, and why its run waits; None if it does not."""
        self._paused.labels(table=table).set(float(paused))
        current = None if waiting is None else waiting.partition(":")[0].strip()
        if current is not None and current not in WAITING_REASONS:
            current = WAITING_REASONS[-1]
        for reason in WAITING_REASONS:
            self._waiting.labels(table=table, reason=reason).set(float(reason == current))

    def set_backlog(self, table: str, backlog: Backlog | None) -> None:
        """Set the backlog of a table; None clears it, since it is unknown."""
        oldest, rows = self._oldest.labels(table=table), self._backlog.labels(table=table)
        if backlog is None:
            rows.clear()
        else:
            rows.set(backlog.rows)
        if backlog is None or backlog.oldest is None:
            oldest.clear()
        else:
            oldest.set(backlog.oldest.timestamp())

    def set_policy(self, table: str, since: datetime, success: datetime | None) -> None:
        """Set when a policy was first registered, and when a run last completed."""
        self._since.labels(table=table).set(since.timestamp())
        if success is not None:
            self._success.labels(table=table).set(success.timestamp())

"""The figures of retention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from watchkeeper.retention._ledger import State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from watchkeeper.metrics import Registry
    from watchkeeper.retention._policy import Policy
    from watchkeeper.retention._run import RunResult

# A stopped run is no outcome: another one goes on where it ended.
STATUSES: Final = tuple(state for state in get_args(State) if state != "stopped")

_DURATION_BUCKETS_S: Final = (0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)


class RetentionMetrics:
    """Declares the instruments and counts with them.

    Args:
        registry: Where they are declared.
        policies: Their series are there from the start.
    """

    def __init__(self, registry: Registry, policies: Iterable[Policy]) -> None:
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

        self._holds = registry.gauge("retention_holds", "Holds that are in force on the table.", ("table",))

    def count_rows(self, table: str, rows: int) -> None:
        """Count rows as they go."""
        self._rows.labels(table=table).inc(rows)

    def count_run(self, result: RunResult) -> None:
        """Count a run that ended."""
        if result.status in STATUSES:
            self._runs.labels(table=result.table, status=result.status).inc()
            if result.duration:  # what was never claimed or closed took no time that is known
                self._duration.labels(table=result.table).observe(result.duration.total_seconds())

    def show_holds(self, table: str, holds: int) -> None:
        """Show how many holds are in force on a table."""
        self._holds.labels(table=table).set(holds)

    def show(self, table: str, since: datetime, success: datetime | None) -> None:
        """Show what the ledger says of a table."""
        self._since.labels(table=table).set(since.timestamp())
        if success is not None:
            self._success.labels(table=table).set(success.timestamp())

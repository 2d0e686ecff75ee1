"""Watches whether the audit log is still append-only.

Metric: `audit_log_protected`. Lines: `{type: "audit", status: "unprotected" | "protected"}`, on a change.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from watchkeeper.audit._protection import protection
from watchkeeper.exceptions import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.database._service import DatabaseService
    from watchkeeper.metrics._registry import Registry


class AuditWatch:
    """Refreshes the gauge `audit_log_protected`, at most once per `interval`; `report` writes log lines."""

    def __init__(
        self,
        database: DatabaseService,
        registry: Registry,
        report: Callable[..., None],
        *,
        interval: timedelta = timedelta(minutes=1),
    ) -> None:
        self._database = database
        self._report = report
        self._interval = interval.total_seconds()
        self._protected = registry.gauge(
            "audit_log_protected", "Whether the database refuses changes of the audit log (1) or not (0)."
        )
        self._findings: list[str] = []
        self._next_check = 0.0

    async def refresh(self) -> None:
        """Check the protection, unless it was checked recently or there are no tables yet."""
        if not self._database.migrated or time.monotonic() < self._next_check:
            return
        try:
            async with self._database.database.connection() as conn:
                findings = await protection(conn)
        except DatabaseUnavailableError:
            self._protected.clear()  # unknown is neither protected nor unprotected
            return
        self._next_check = time.monotonic() + self._interval
        self._protected.set(float(not findings))
        if findings != self._findings:
            self._log(findings)
        self._findings = findings

    def _log(self, findings: list[str]) -> None:
        for finding in findings:
            self._report("error", type="audit", status="unprotected", msg=finding)
        if not findings:
            self._report("info", type="audit", status="protected")

"""The log lines of the retention job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.logs._exceptions import describe_exception
from watchkeeper.retention._model import RunObserver
from watchkeeper.retention.ledger._interrupts import RunPausedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from watchkeeper.logs._logging import Logging
    from watchkeeper.retention._model import Pressure, Reason, RunResult

_JOB: Final = "retention"
_FAILURES: Final = ("failed", "refused")


class JobLog(RunObserver):
    """Logs the events of runs, and how the job ended."""

    def __init__(self, logging: Logging) -> None:
        self._logging = logging
        self._started = False

    def waiting(self, table: str, run: int, pressure: Pressure) -> None:
        """Log why a run waits."""
        self._logging.event(
            "warn",
            type="retention",
            table=table,
            status="waiting",
            run=run,
            reason=pressure.reason,
            msg=f"{table} waits: {pressure.detail}",
        )

    def resumed(self, table: str, run: int, reason: Reason, waited: timedelta) -> None:
        """Log that a run continues."""
        self._logging.event(
            "info",
            type="retention",
            table=table,
            status="resumed",
            run=run,
            reason=reason,
            duration=_milliseconds(waited),
        )

    def finished(self, result: RunResult) -> None:
        """Log the outcome of a run."""
        failed = result.status in _FAILURES
        self._logging.event(
            "error" if failed else "info",
            type="retention",
            table=result.table,
            deleted=result.deleted,
            status=result.status,
            run=result.run,
            duration=_milliseconds(result.duration),
            **({"msg": " ".join(result.notes)} if result.notes else {}),
            **({"error": describe_exception(result.error)} if failed and result.error else {}),
            **({"msg": str(result.error)} if result.error and not failed else {}),
        )

    def missing_privilege(self, sentence: str) -> None:
        """Log which pressure cannot be checked, because the role lacks a privilege."""
        self._logging.event("warn", type="retention", status="missing_privilege", msg=sentence)

    def job_scheduled(self, next_run: datetime) -> None:
        """Log when the job runs next."""
        self._log_job("info", status="scheduled", due=f"{next_run.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")

    def job_started(self) -> None:
        """Log that the job has started, once for all runs of one tick."""
        if not self._started:
            self._started = True
            self._log_job("info", status="started")

    def job_finished(self, results: Sequence[RunResult], *, manual: bool = False) -> None:
        """Log how the runs of one tick ended; another process continues a stopped run unless it is manual."""
        self._started = False
        failures = [result for result in results if result.status in _FAILURES]
        if failures:
            error = next((result.error for result in failures if result.error is not None), None)
            self._log_job(
                "error",
                status="failed",
                tables=[result.table for result in failures],
                **({"error": describe_exception(error)} if error is not None else {}),
            )
        elif any(
            result.status == "stopped" and not isinstance(result.error, RunPausedError) for result in results
        ):
            if manual:
                self._log_job("info", status="stopped")
            else:
                self.job_scheduled(datetime.now(UTC))
        elif results:
            self._log_job("info", status="completed")

    def job_failed(self, error: BaseException) -> None:
        """Log that the job itself failed."""
        self._log_job("error", status="failed", error=describe_exception(error))

    def schedule_waiting(self, error: BaseException) -> None:
        """Log that the schedule waits for the database."""
        self._logging.event("warn", type="schedule", name=_JOB, status="waiting", msg=str(error))

    def schedule_resumed(self) -> None:
        """Log that the schedule has its database again."""
        self._logging.event("info", type="schedule", name=_JOB, status="resumed")

    def _log_job(self, level: str, **fields: object) -> None:
        self._logging.event(level, type="job", name=_JOB, **fields)


def _milliseconds(duration: timedelta) -> float:
    return round(duration / timedelta(milliseconds=1), 1)

"""The lines of the retention job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from watchkeeper.logs import describe_exception

if TYPE_CHECKING:
    from collections.abc import Sequence

    from watchkeeper.logs import Logging
    from watchkeeper.retention._run import RunResult

_BAD = ("failed", "refused")


class JobLines:
    """Writes what the job does.

    Args:
        logging: Where the lines go.
        job: The job's name.
    """

    def __init__(self, logging: Logging, job: str) -> None:
        self._logging = logging
        self._job = job
        self._begun = False

    def scheduled(self, due: datetime) -> None:
        """Say when the job runs next."""
        self._write("info", status="scheduled", due=f"{due.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")

    def started(self) -> None:
        """Say that the first of what is due has begun."""
        if not self._begun:
            self._begun = True
            self._write("info", status="started")

    def ran(self, result: RunResult) -> None:
        """Say what a run came to."""
        bad = result.status in _BAD
        self._logging.event(
            "error" if bad else "info",
            type="retention",
            table=result.table,
            deleted=result.deleted,
            status=result.status,
            run=result.run,
            duration=round(result.duration / timedelta(milliseconds=1), 1),
            **({"msg": " ".join(result.notes)} if result.notes else {}),
            **({"error": describe_exception(result.error)} if bad and result.error else {}),
        )

    def finished(self, results: Sequence[RunResult]) -> None:
        """Say how everything went that was due; nothing if nothing was."""
        self._begun = False
        bad = [result for result in results if result.status in _BAD]
        if bad:
            error = next((result.error for result in bad if result.error is not None), None)
            self._write(
                "error",
                status="failed",
                tables=[result.table for result in bad],
                **({"error": describe_exception(error)} if error is not None else {}),
            )
        elif any(result.status == "stopped" for result in results):
            self.scheduled(datetime.now(UTC))
        elif results:
            self._write("info", status="completed")

    def broke(self, error: BaseException) -> None:
        """Say that the job itself failed."""
        self._write("error", status="failed", error=describe_exception(error))

    def waiting(self, error: BaseException) -> None:
        """Say that the job waits for the database."""
        self._logging.event("warn", type="schedule", name=self._job, status="waiting", msg=str(error))

    def resumed(self) -> None:
        """Say that the job has its database again."""
        self._logging.event("info", type="schedule", name=self._job, status="resumed")

    def _write(self, level: str, **fields: object) -> None:
        self._logging.event(level, type="job", name=self._job, **fields)

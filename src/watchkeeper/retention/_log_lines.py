"""The lines of the retention job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from watchkeeper.logs import describe_exception
from watchkeeper.retention.ledger._interrupts import RunPausedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from watchkeeper.logs import Logging
    from watchkeeper.retention.run._pressure import Pressure, Reason
    from watchkeeper.retention.run._run import RunResult

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
        self.on_wait: Callable[[str, str | None], None] = lambda _table, _reason: None
        """Told of waiting too: the policy's name, and what its run waits for; None when that goes on."""

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
            **({"msg": str(result.error)} if result.error and not bad else {}),
        )

    def waits(self, table: str, run: int, pressure: Pressure) -> None:
        """Say what a run begins to wait for."""
        self.on_wait(table, str(pressure))
        self._logging.event(
            "warn",
            type="retention",
            table=table,
            status="waiting",
            run=run,
            reason=pressure.reason,
            msg=f"{table} waits: {pressure.detail}",
        )

    def goes_on(self, table: str, run: int, reason: Reason, waited: timedelta) -> None:
        """Say that a run goes on, what it waited for last, and how long it waited."""
        self.on_wait(table, None)
        self._logging.event(
            "info",
            type="retention",
            table=table,
            status="resumed",
            run=run,
            reason=reason,
            duration=round(waited / timedelta(milliseconds=1), 1),
        )

    def blind(self, sentence: str) -> None:
        """Say what runs cannot wait for, because the service's role does not see it."""
        self._logging.event("warn", type="retention", status="blind", msg=sentence)

    def finished(self, results: Sequence[RunResult], *, by_hand: bool = False) -> None:
        """Say how everything went that was due; nothing if nothing was.

        Args:
            results: What was run.
            by_hand: Whether an operator wanted it, so that nobody goes on by himself with what was stopped.
        """
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
        elif any(
            result.status == "stopped" and not isinstance(result.error, RunPausedError) for result in results
        ):
            if by_hand:
                self._write("info", status="stopped")
            else:
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

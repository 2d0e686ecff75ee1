"""What the parts of retention tell each other: claims, results, pressure, and who observes a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, Protocol, get_args

Trigger = Literal["schedule", "manual"]
State = Literal["completed", "failed", "refused", "stopped", "cancelled"]
Reason = Literal["replication lag", "long transaction", "vacuum", "wal", "disk"]

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""What a run waits for; in the ledger a colon and the details follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A run that this process holds: its row in the ledger, under a lease."""

    id: int
    table_name: str
    epoch: int  # the run is ours as long as the ledger has the same
    trigger: Trigger
    due_at: datetime
    attempt: int
    horizon: datetime  # rows older than this are eligible; fixed for the whole run
    started_at: datetime
    rows_deleted: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """The outcome of a run.

    Args:
        table: The policy's name.
        status: completed; failed; refused: the policy may not be carried out; stopped: the process was asked
            to stop or the policy was paused, and the next run continues; cancelled: an operator ended it.
        deleted: Number of rows deleted.
        bytes_deleted: Estimated size of these rows, from the size of a row when the run began.
        duration: From the claim to the end.
        run: Its number in the ledger; None if it was not claimed.
        error: Why it did not complete.
        left_open: Whether it could not be closed here; the process that closes it counts it.
        notes: What an operator should know, in sentences, such as partitions that were not dropped.
    """

    table: str
    status: State
    deleted: int = 0
    bytes_deleted: int = 0
    duration: timedelta = timedelta(0)
    run: int | None = None
    error: BaseException | None = None
    left_open: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pressure:
    """Why a run waits: a reason, and what was measured as a sentence."""

    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """Rows of a table that are past the horizon and not held.

    Args:
        rows: Number of rows.
        exact: Whether they were counted; otherwise the number is an estimate.
        oldest: Age of the oldest such row; None without one. Without an index on the age column it is the
            oldest of a sample.
    """

    rows: int
    exact: bool
    oldest: datetime | None


class RunObserver(Protocol):
    """Receives the events of runs; called on the event loop, so it must not block."""

    def deleted(self, table: str, rows: int, /) -> None:
        """Rows were deleted by a transaction that has committed."""

    def waiting(self, table: str, run: int, pressure: Pressure, /) -> None:
        """A run begins to wait, or waits for another reason."""

    def resumed(self, table: str, run: int, reason: Reason, waited: timedelta, /) -> None:
        """A run continues after it waited."""

    def finished(self, result: RunResult, /) -> None:
        """A run ended, or could not be claimed or closed."""


class Observers:
    """Passes each event on to several observers."""

    def __init__(self, *observers: RunObserver) -> None:
        self._observers = observers

    def deleted(self, table: str, rows: int) -> None:
        """Pass on that rows were deleted."""
        for observer in self._observers:
            observer.deleted(table, rows)

    def waiting(self, table: str, run: int, pressure: Pressure) -> None:
        """Pass on that a run waits."""
        for observer in self._observers:
            observer.waiting(table, run, pressure)

    def resumed(self, table: str, run: int, reason: Reason, waited: timedelta) -> None:
        """Pass on that a run continues."""
        for observer in self._observers:
            observer.resumed(table, run, reason, waited)

    def finished(self, result: RunResult) -> None:
        """Pass on that a run ended."""
        for observer in self._observers:
            observer.finished(result)

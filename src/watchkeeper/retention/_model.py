"""The types that all parts of retention share: claims, results, pressure and the observer of runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, get_args

Trigger = Literal["schedule", "manual"]
State = Literal["completed", "failed", "refused", "stopped", "cancelled"]
Reason = Literal["replication lag", "long transaction", "vacuum", "wal", "disk"]

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""Why a run waits; the ledger adds a colon and the details."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A run that this process has claimed: its row in the ledger."""

    id: int
    table_name: str
    epoch: int  # changes in the ledger when another process closes the run
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
        status: `completed`; `failed`; `refused`: the policy cannot be applied to its table; `stopped`: the
            process was stopped or the policy paused, and the next run continues; `cancelled` by an operator.
        deleted: Number of rows deleted.
        bytes_deleted: Estimated size of these rows, from the size of a row when the run began.
        duration: From the claim to the end.
        run: Its id in the ledger; None if it was not claimed.
        error: Why it did not complete.
        left_open: Whether this process could not close it; the process that closes it counts it.
        notes: Sentences for the operator, such as which partitions could not be dropped.
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
    """Why a run waits."""

    reason: Reason
    detail: str  # what was measured, as a sentence

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """Rows of a table that are past the horizon and not held."""

    rows: int
    exact: bool  # counted; otherwise estimated from a sample
    oldest: datetime | None  # timestamp of the oldest such row, of the sample if there is no index


class RunObserver:
    """Receives the events of runs; a subclass overrides the methods that it needs: the others do nothing.

    They are called on the event loop, between a run's transactions, so they must not block. `table` is the
    policy's name, `run` the run's id in the ledger.
    """

    def deleted(self, table: str, rows: int, /) -> None:
        """Handle a committed transaction that deleted this number of rows."""

    def waiting(self, table: str, run: int, pressure: Pressure, /) -> None:
        """Handle the start of a wait, or a change of its reason."""

    def resumed(self, table: str, run: int, reason: Reason, waited: timedelta, /) -> None:
        """Handle the end of a wait: the last reason, and how long it took."""

    def finished(self, result: RunResult, /) -> None:
        """Handle the end of a run, or a run that could not be claimed."""


class Observers(RunObserver):
    """Forwards each event to several observers."""

    def __init__(self, *observers: RunObserver) -> None:
        self._observers = observers

    def deleted(self, table: str, rows: int) -> None:
        """Forward that rows were deleted."""
        for observer in self._observers:
            observer.deleted(table, rows)

    def waiting(self, table: str, run: int, pressure: Pressure) -> None:
        """Forward that a run waits."""
        for observer in self._observers:
            observer.waiting(table, run, pressure)

    def resumed(self, table: str, run: int, reason: Reason, waited: timedelta) -> None:
        """Forward that a run continues."""
        for observer in self._observers:
            observer.resumed(table, run, reason, waited)

    def finished(self, result: RunResult) -> None:
        """Forward that a run ended."""
        for observer in self._observers:
            observer.finished(result)

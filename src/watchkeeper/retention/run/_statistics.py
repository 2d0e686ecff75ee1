"""What one pass found and deleted, and whether a trigger keeps the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import RetentionError

if TYPE_CHECKING:
    from watchkeeper.retention.run._batch import BatchResult

# After this many batches in a row that could delete rows but deleted none, a trigger keeps them.
_MOST_FUTILE_BATCHES: Final = 3


@dataclass(kw_only=True, slots=True)
class PassStatistics:
    """Rows of one pass; a row at the border of two batches counts twice."""

    eligible: int = 0
    locked: int = 0  # by other transactions
    kept: int = 0  # not locked, and still there after the delete
    deleted: int = 0

    def add(self, batch: BatchResult) -> None:
        """Add one batch."""
        self.eligible += batch.eligible
        self.locked += batch.eligible - batch.available
        self.kept += batch.available - batch.deleted
        self.deleted += batch.deleted


class TriggerGuard:
    """Fails a run whose rows a trigger keeps, before it archives or scans everything in vain."""

    def __init__(self) -> None:
        self._futile = 0

    def check(self, table: str, batch: BatchResult) -> None:
        """Raise RetentionError after several batches in a row that deleted none of their available rows."""
        if batch.deleted:
            self._futile = 0
        elif batch.available:
            self._futile += 1
        if self._futile >= _MOST_FUTILE_BATCHES:
            raise kept_by_trigger(table)


def kept_by_trigger(table: str) -> RetentionError:
    """Return the error for rows that are kept although they are not locked."""
    return RetentionError(
        f"Eligible rows of {table} stay although no transaction has locked them: a BEFORE DELETE trigger"
        " keeps them, or another trigger puts them back. Change the trigger, or the policy."
    )

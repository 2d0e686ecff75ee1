"""How much one transaction takes on, from the time that the last ones took."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.retention.run._batch import AgeRange, BlockRange, Range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from watchkeeper.retention.run._tuning import Sizes, Tuning

TRANSACTION_TARGET: Final = timedelta(milliseconds=50)
# The 99th percentile of inserts beside a run, over an idle table's, at a budget of a half: 1.0 to 1.8 with
# deletes of 1 ms, 1.8 with 2, 3 with 5, 4 with 50. At a budget of a quarter, with 1 ms, 1.4.
_SHARED_TARGET: Final = TRANSACTION_TARGET / 50
# Below this a statement's time says nothing about its size.
_SHORTEST: Final = TRANSACTION_TARGET / 200
# The number of statements that a delete consists of.
_STATEMENTS: Final[Mapping[type[Range], int]] = {AgeRange: 3, BlockRange: 2}
# Where one row is locked, more are: this many batches after it skip locked rows from the start, and twice as
# many each time that a plain one meets a locked row again.
_SKIPPING_BATCHES: Final = 8
_MOST_SKIPPING_BATCHES: Final = 256


class BatchSizer:
    """Adapts the size of a run's batches.

    Args:
        tuning: First, smallest and largest sizes.
        share_time: Whether the delete alone is measured, against a shorter target. What comes around a delete
            takes its time however few rows it deletes, and on a busy machine more than the target.
    """

    def __init__(self, tuning: Tuning, *, share_time: bool) -> None:
        self._share_time = share_time
        self._target = _SHARED_TARGET if share_time else TRANSACTION_TARGET
        self._limits: dict[type[Range], Sizes] = {AgeRange: tuning.ages, BlockRange: tuning.blocks}
        self._sizes = {kind: sizes.first for kind, sizes in self._limits.items()}
        self.scan_size = tuning.blocks.first
        """How many blocks to check at once for whether anything is left in them."""
        self._skipping = 0
        self._skipping_batches = _SKIPPING_BATCHES
        self.met_locks = False
        """Whether eligible rows were locked by other transactions."""

    def size(self, range_: Range) -> int:
        """Return how many rows or blocks of a range to take on."""
        return self._sizes[type(range_)]

    def adapt(
        self, range_: Range, *, deleted: int, deleting: timedelta, whole: timedelta, round_trip: timedelta
    ) -> None:
        """Grow or shrink after a transaction.

        Args:
            range_: What it went over.
            deleted: How many rows it deleted.
            deleting: How long its delete took.
            whole: How long the whole transaction took.
            round_trip: How long a statement takes that does nothing.
        """
        kind = type(range_)
        took = deleting - round_trip * _STATEMENTS[kind] if self._share_time else whole
        limits, size = self._limits[kind], self._sizes[kind]
        largest = limits.largest if deleted else max(limits.largest_empty, size)
        self._sizes[kind] = min(max(_scale(size, self._target, took), limits.smallest), largest)

    def adapt_scan(self, took: timedelta) -> None:
        """Grow or shrink the scan after one that took this long."""
        limits = self._limits[BlockRange]
        size = _scale(self.scan_size, self._target, took)
        self.scan_size = min(max(size, limits.smallest), limits.largest)

    def shrink(self) -> None:
        """Take on much less, after a failure."""
        self._sizes = {
            kind: max(size // 4, self._limits[kind].smallest) for kind, size in self._sizes.items()
        }

    def take_skipping(self) -> bool:
        """Return whether the next batch should skip locked rows from the start; each call counts as one."""
        if not self._skipping:
            return False
        self._skipping -= 1
        return True

    def record_lock_conflict(self) -> None:
        """Record that a plain batch met a locked row."""
        self.met_locks = True
        self._skipping = self._skipping_batches
        self._skipping_batches = min(self._skipping_batches * 2, _MOST_SKIPPING_BATCHES)

    def record_clean_batch(self) -> None:
        """Record that a plain batch met no locked row."""
        self._skipping_batches = _SKIPPING_BATCHES


def _scale(size: int, target: timedelta, took: timedelta) -> int:
    factor = min(max(target / max(took, _SHORTEST), 0.5), 2.0)
    # Rounded up where it grows: one block would stay one.
    return math.ceil(size * factor) if factor > 1.0 else int(size * factor)

"""The size of a run's batches: as much as fits into the target time."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.retention.run._batch import AgeRange, BlockRange, Range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from watchkeeper.retention.run._tuning import Sizes, Tuning

TRANSACTION_TARGET: Final = timedelta(milliseconds=50)
# The 99th percentile of concurrent inserts, relative to an idle table, with a budget of 1/2: 1.0 to 1.8 with
# deletes of 1 ms, 1.8 with 2, 3 with 5, 4 with 50. With a budget of 1/4 and 1 ms: 1.4.
_SHARED_TARGET: Final = TRANSACTION_TARGET / 50
# Too short to measure the effect of the size.
_SHORTEST: Final = TRANSACTION_TARGET / 200
# The number of statements that a delete consists of.
_STATEMENTS: Final[Mapping[type[Range], int]] = {AgeRange: 3, BlockRange: 2}
# Locked rows come in groups: after a lock conflict so many batches skip locked rows at once, and twice as
# many after each further conflict.
_SKIPPING_BATCHES: Final = 8
_MOST_SKIPPING_BATCHES: Final = 256


class BatchSizer:
    """Adapts the size of a run's batches, and decides which of them skip locked rows at once.

    A throttled run (`share_time`) has a shorter target, for the delete alone: the rest takes its time anyway.
    """

    def __init__(self, tuning: Tuning, *, share_time: bool) -> None:
        self._share_time = share_time
        self._target = _SHARED_TARGET if share_time else TRANSACTION_TARGET
        self._limits: dict[type[Range], Sizes] = {AgeRange: tuning.ages, BlockRange: tuning.blocks}
        self._sizes = {kind: sizes.first for kind, sizes in self._limits.items()}
        self.scan_size = tuning.blocks.first
        """How many blocks to check at once for remaining rows."""
        self._skipping = 0
        self._skipping_batches = _SKIPPING_BATCHES
        self.saw_locks = False
        """Whether a batch met a locked row."""

    def size(self, range_: Range) -> int:
        """Return how many rows or blocks of a range the next batch covers."""
        return self._sizes[type(range_)]

    def adapt(
        self, range_: Range, *, deleted: int, deleting: timedelta, whole: timedelta, round_trip: timedelta
    ) -> None:
        """Adapt the size to the time of a batch's delete and of its whole transaction."""
        kind = type(range_)
        took = deleting - round_trip * _STATEMENTS[kind] if self._share_time else whole
        limits, size = self._limits[kind], self._sizes[kind]
        largest = limits.largest if deleted else max(limits.largest_empty, size)
        self._sizes[kind] = min(max(_scale(size, self._target, took), limits.smallest), largest)

    def adapt_scan(self, took: timedelta) -> None:
        """Adapt `scan_size` to the time of a scan."""
        limits = self._limits[BlockRange]
        size = _scale(self.scan_size, self._target, took)
        self.scan_size = min(max(size, limits.smallest), limits.largest)

    def shrink(self) -> None:
        """Quarter the sizes after an error."""
        self._sizes = {
            kind: max(size // 4, self._limits[kind].smallest) for kind, size in self._sizes.items()
        }

    def take_skipping(self) -> bool:
        """Return whether the next batch skips locked rows at once, and count it."""
        if not self._skipping:
            return False
        self._skipping -= 1
        return True

    def record_lock_conflict(self) -> None:
        """Record that a plain batch met a locked row."""
        self.saw_locks = True
        self._skipping = self._skipping_batches
        self._skipping_batches = min(self._skipping_batches * 2, _MOST_SKIPPING_BATCHES)

    def record_clean_batch(self) -> None:
        """Record that a plain batch met no locked row."""
        self._skipping_batches = _SKIPPING_BATCHES


def _scale(size: int, target: timedelta, took: timedelta) -> int:
    factor = min(max(target / max(took, _SHORTEST), 0.5), 2.0)
    # Round up when growing: one block would stay one.
    return math.ceil(size * factor) if factor > 1.0 else int(size * factor)

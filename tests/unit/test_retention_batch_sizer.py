"""The size of batches follows the duration of the last ones; latency does not count."""

from datetime import timedelta

import pytest

from watchkeeper.retention.run._batch import AgeRange, BlockRange, Range
from watchkeeper.retention.run._batch_sizer import BatchSizer
from watchkeeper.retention.run._tuning import Tuning

BLOCKS = BlockRange(start=0, stop=1_000_000)


def sizes(
    sizer: BatchSizer, span: Range, *, each_us: float, trip_ms: float = 0.2, deleted: int = 1
) -> list[int]:
    """Return the sizes of thirty batches whose rows or blocks take this long each."""
    found = []
    for _ in range(30):
        found.append(sizer.size(span))
        trips = 3 if isinstance(span, AgeRange) else 2
        trip = timedelta(milliseconds=trip_ms)
        deleting = trip * trips + timedelta(microseconds=each_us) * sizer.size(span)
        sizer.adapt(span, deleted=deleted, deleting=deleting, whole=deleting + 6 * trip, round_trip=trip)
    return found


@pytest.mark.parametrize("trip_ms", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("span", [BLOCKS, AgeRange()], ids=["by place", "by age"])
def test_latency_does_not_make_batches_small(span: Range, trip_ms: float) -> None:
    """Within a budget only the work counts: 1 ms, however long a round trip takes."""
    each_us = 40.0 if isinstance(span, BlockRange) else 10.0
    *_, last = sizes(BatchSizer(Tuning(), share_time=True), span, each_us=each_us, trip_ms=trip_ms)
    assert 0.8 <= last * each_us / 1000 <= 1.2


def test_unthrottled_the_whole_transaction_counts() -> None:
    """With 8 statements of 1 ms, 42 of 50 ms are left for the delete."""
    *_, last = sizes(BatchSizer(Tuning(), share_time=False), BLOCKS, each_us=40.0, trip_ms=1.0)
    assert 40 <= last * 40.0 / 1000 <= 44


def test_smallest_batch_grows_again() -> None:
    """A slow range does not leave the rest with the smallest size."""
    sizer = BatchSizer(Tuning(), share_time=True)
    assert sizes(sizer, BLOCKS, each_us=50_000.0)[-1] == 1
    assert sizes(sizer, BLOCKS, each_us=700.0)[-1] in (1, 2)
    assert sizes(sizer, BLOCKS, each_us=20.0)[-1] >= 40


def test_empty_range_does_not_make_the_next_batch_large() -> None:
    """The next one may be full, and is one transaction."""
    sizer = BatchSizer(Tuning(), share_time=True)
    assert max(sizes(sizer, BLOCKS, each_us=0.1, deleted=0)) <= 512
    for _ in range(30):
        sizer.adapt_scan(timedelta(milliseconds=0.1))
    assert sizer.scan_size > 4000
    assert sizer.size(BLOCKS) <= 512

"""The size of batches follows the duration of the last ones; latency does not count."""

from __future__ import annotations

from datetime import timedelta

import pytest

from watchkeeper.retention import Limits
from watchkeeper.retention.run._batch_size import Pace
from watchkeeper.retention.run._sweep import AgeSpan, BlockSpan, Span

BLOCKS = BlockSpan(start=0, stop=1_000_000)
KIND = Limits(budget=0.5)
FLAT_OUT = Limits(budget=1.0)


def sizes(pace: Pace, span: Span, *, each_us: float, trip_ms: float = 0.2, deleted: int = 1) -> list[int]:
    """Return the sizes of thirty batches whose rows or blocks take this long each."""
    found = []
    for _ in range(30):
        found.append(pace.size(span))
        trips = 3 if isinstance(span, AgeSpan) else 2
        trip = timedelta(milliseconds=trip_ms)
        deleting = trip * trips + timedelta(microseconds=each_us) * pace.size(span)
        pace.adapt(span, deleted=deleted, deleting=deleting, whole=deleting + 6 * trip, trip=trip)
    return found


@pytest.mark.parametrize("trip_ms", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("span", [BLOCKS, AgeSpan()], ids=["by place", "by age"])
def test_latency_does_not_make_batches_small(span: Span, trip_ms: float) -> None:
    """Within a budget only the work counts: 1 ms, however long a round trip takes."""
    each_us = 40.0 if isinstance(span, BlockSpan) else 10.0
    *_, last = sizes(Pace(KIND), span, each_us=each_us, trip_ms=trip_ms)
    assert 0.8 <= last * each_us / 1000 <= 1.2


def test_unthrottled_the_whole_transaction_counts() -> None:
    """With 8 statements of 1 ms, 42 of 50 ms are left for the delete."""
    *_, last = sizes(Pace(FLAT_OUT), BLOCKS, each_us=40.0, trip_ms=1.0)
    assert 40 <= last * 40.0 / 1000 <= 44


def test_smallest_batch_grows_again() -> None:
    """A slow range does not leave the rest with the smallest size."""
    pace = Pace(KIND)
    assert sizes(pace, BLOCKS, each_us=50_000.0)[-1] == 1
    assert sizes(pace, BLOCKS, each_us=700.0)[-1] in (1, 2)
    assert sizes(pace, BLOCKS, each_us=20.0)[-1] >= 40


def test_empty_range_does_not_make_the_next_batch_large() -> None:
    """The next one may be full, and is one transaction."""
    pace = Pace(KIND)
    assert max(sizes(pace, BLOCKS, each_us=0.1, deleted=0)) <= 512
    for _ in range(30):
        pace.adapt_look(timedelta(milliseconds=0.1))
    assert pace.look_size > 4000
    assert pace.size(BLOCKS) <= 512

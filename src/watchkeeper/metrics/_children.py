"""The children of an instrument: one series each, which a hot path keeps and counts with."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Final, Literal, Self

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._store import MAX_EXEMPLARS, Exemplar
from watchkeeper.metrics._validation import checked_exemplar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from watchkeeper.metrics._family import Family
    from watchkeeper.metrics._store import Cells, Store

_INF: Final = math.inf
_TIMER_FACTORS: Final = {"s": 1.0, "ms": 1000.0}
_SHOWN: Final = 1.0


class Child:
    """One label set of an instrument, and the cells that it counts in."""

    __slots__ = ("_cells", "_lock", "_store")

    def __init__(self, store: Store, family: Family, labels: tuple[str, ...]) -> None:
        self._store = store
        self._lock = store.lock
        # One tuple of memory and index: a move replaces both at once, regardless of other threads.
        self._cells = store.memory.values, store.memory.place(family, labels)

    def move(self, values: Cells, first: int, width: int, *, carry: bool) -> None:
        """Count in `width` cells of `values` from now on; `carry` adds what was counted so far to them."""
        # Other threads may count concurrently: in the old cells before this swap, in the new ones after it.
        (before, at), self._cells = self._cells, (values, first)
        for offset in range(width if carry else 0):
            values[first + offset] += before[at + offset]


class CounterChild(Child):
    """One series of a counter."""

    __slots__ = ()

    def inc(self, amount: float = 1.0, exemplar: Mapping[str, str] | None = None) -> None:
        """Add `amount` to the counter; see `Counter.inc`."""
        if not 0.0 <= amount < _INF:
            raise MetricError(f"A counter only goes up, by a finite number: {amount!r} is refused.")
        if type(amount) is not float:
            amount = float(amount)  # so that no method of another type runs between load and store
        if self._lock is None:
            values, first = self._cells
            values[first] += amount
        else:
            with self._lock:
                values, first = self._cells
                values[first] += amount
        if exemplar is not None:
            self._store.keep_exemplar(first, Exemplar(checked_exemplar(exemplar), amount, time.time()))


class GaugeChild(Child):
    """One series of a gauge; it is exposed from its first value until it is cleared.

    Its second cell is a stamp: 0 before the first value, positive while exposed, negative after `clear`. In
    the mode "latest" it is a CLOCK_MONOTONIC time, which all processes of a machine share.
    """

    __slots__ = ("_latest",)

    def __init__(self, store: Store, family: Family, labels: tuple[str, ...]) -> None:
        super().__init__(store, family, labels)
        self._latest = family.multiprocess_mode == "latest"

    def set(self, value: float) -> None:
        """Set the gauge to `value`; see `Gauge.set`."""
        stamp = monotonic() if self._latest else _SHOWN
        values, first = self._cells
        values[first] = value
        values[first + 1] = stamp

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount` to the gauge; see `Gauge.inc`."""
        if self._latest:
            raise MetricError(
                "This gauge shows the latest value of all workers, so it can only be set. Declare it with"
                ' multiprocess_mode="sum" to move it up and down.'
            )
        if not -_INF < amount < _INF:
            raise MetricError(f"A gauge moves by a finite number: {amount!r} is refused.")
        if type(amount) is not float:
            amount = float(amount)
        if self._lock is None:
            values, first = self._cells
            values[first] += amount
        else:
            with self._lock:
                values, first = self._cells
                values[first] += amount
        values[first + 1] = _SHOWN

    def dec(self, amount: float = 1.0) -> None:
        """Subtract `amount` from the gauge; see `inc`."""
        self.inc(-amount)

    def move(self, values: Cells, first: int, width: int, *, carry: bool) -> None:
        """Count in these cells from now on; see `Child.move`."""
        before, at = self._cells
        carried = [before[at + offset] for offset in range(width if carry else 0)]
        # Write before the swap, since another thread may set the new cells right after it. Then add what
        # was added to the old cells in between.
        for offset, amount in enumerate(carried):
            values[first + offset] = amount
        self._cells = values, first
        for offset, amount in enumerate(carried):
            if before[at + offset] != amount:
                values[first + offset] += before[at + offset] - amount

    def clear(self) -> None:
        """Remove the series from the exposition until it is set again."""
        stamp = -monotonic()
        values, first = self._cells
        values[first + 1] = stamp
        values[first] = 0.0


class HistogramChild(Child):
    """One series of a histogram: a count for each bucket and one above all bounds, then the sum."""

    __slots__ = ("_bounds", "_sum_offset")

    def __init__(self, store: Store, family: Family, labels: tuple[str, ...]) -> None:
        super().__init__(store, family, labels)
        self._bounds = family.bounds
        self._sum_offset = len(family.bounds) + 1

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Add `value` to the distribution; see `Histogram.observe`."""
        if not -_INF < value < _INF:
            raise MetricError(f"A histogram takes finite numbers: {value!r} is refused.")
        if type(value) is not float:
            value = float(value)
        bucket = bisect_left(self._bounds, value)
        if self._lock is None:
            values, first = self._cells
            index, total = first + bucket, first + self._sum_offset
            values[index] += 1.0
            values[total] += value
        else:
            with self._lock:
                values, first = self._cells
                index, total = first + bucket, first + self._sum_offset
                values[index] += 1.0
                values[total] += value
        if exemplar is not None:
            self._store.keep_exemplar(index, Exemplar(checked_exemplar(exemplar), value, time.time()))

    def time(self, unit: Literal["s", "ms"] = "s") -> Timer:
        """Return a context manager that observes how long its block took; see `Histogram.time`."""
        return Timer(self, unit)


class RequestChild:
    """The counter and the histogram of one kind of request as one object: fewer calls for each request."""

    __slots__ = ("_bounds", "_counter", "_histogram", "_lock", "_store", "_sum_offset")

    # ruff: noqa: SLF001 - this class is the other two in one
    def __init__(self, counter: CounterChild, histogram: HistogramChild) -> None:
        self._counter = counter
        self._histogram = histogram
        self._store = histogram._store
        self._lock = histogram._lock
        self._bounds = histogram._bounds
        self._sum_offset = histogram._sum_offset

    def count(self) -> None:
        """Add 1 to the counter."""
        if self._lock is None:
            values, first = self._counter._cells
            values[first] += 1.0
        else:
            self._counter.inc()

    def observe(self, value: float, trace_id: str) -> None:
        """Add a finite `value`; the trace id becomes the exemplar of a bucket without one, else 1 in 16."""
        bucket = bisect_left(self._bounds, value)
        if self._lock is None:
            values, first = self._histogram._cells
            index = first + bucket
            values[index] += 1.0
            values[first + self._sum_offset] += value
        else:
            with self._lock:
                values, first = self._histogram._cells
                index = first + bucket
                values[index] += 1.0
                values[first + self._sum_offset] += value
        known = self._store.exemplars
        if trace_id and (trace_id[-1] == "0" or (index not in known and len(known) < MAX_EXEMPLARS)):
            self._store.keep_exemplar(index, Exemplar({"trace_id": trace_id}, value, time.time()))


class Timer:
    """A context manager that observes how long its block takes; see `Histogram.time`."""

    __slots__ = ("_factor", "_histogram", "_start")

    def __init__(self, histogram: HistogramChild, unit: Literal["s", "ms"]) -> None:
        if unit not in _TIMER_FACTORS:
            raise MetricError(f"A timer counts in 's' or 'ms', not in {unit!r}.")
        self._histogram = histogram
        self._factor = _TIMER_FACTORS[unit]
        self._start = 0.0

    def __enter__(self) -> Self:
        self._start = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._histogram.observe((perf_counter() - self._start) * self._factor)

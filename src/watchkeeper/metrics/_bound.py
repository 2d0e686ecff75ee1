"""The series themselves: what a hot path holds on to and counts with."""

from __future__ import annotations

import math
from bisect import bisect_left
from time import perf_counter
from typing import TYPE_CHECKING, Final, Literal, Self

from watchkeeper.exceptions import MetricError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from watchkeeper.metrics._store import Store

_INF: Final = math.inf
_TIMER_FACTORS: Final = {"s": 1.0, "ms": 1000.0}

Sample = tuple[str, dict[str, str], float]
"""Name, labels and value, as an exposition has them."""


class BoundCounter:
    """One series of a counter."""

    __slots__ = ("_index", "_lock", "_values")

    def __init__(self, store: Store) -> None:
        self._index = store.allocate(1)
        self._values = store.values
        self._lock = store.lock

    def inc(self, amount: float = 1.0) -> None:
        """Count `amount` more.

        Raises:
            MetricError: `amount` is negative, infinite or not a number.
        """
        if not 0.0 <= amount < _INF:
            raise MetricError(f"A counter only goes up, by a finite number: {amount!r} is refused.")
        if type(amount) is not float:
            amount = float(amount)  # here, so that no method of a foreign number runs between load and store
        if self._lock is None:
            self._values[self._index] += amount
        else:
            with self._lock:
                self._values[self._index] += amount

    def samples(self, name: str, labels: Mapping[str, str]) -> Iterator[Sample]:
        """Give the series as samples of the metric `name`."""
        yield name, dict(labels), self._values[self._index]


class BoundGauge:
    """One series of a gauge; it is exposed from its first value on, until it is cleared."""

    __slots__ = ("_index", "_lock", "_shown", "_values")

    def __init__(self, store: Store) -> None:
        self._index = store.allocate(1)
        self._values = store.values
        self._lock = store.lock
        self._shown = False

    def set(self, value: float) -> None:
        """Put the gauge at `value`; NaN says that the value is not known."""
        self._values[self._index] = value
        self._shown = True

    def inc(self, amount: float = 1.0) -> None:
        """Move the gauge up by `amount`.

        Raises:
            MetricError: `amount` is infinite or not a number.
        """
        if not -_INF < amount < _INF:
            raise MetricError(f"A gauge moves by a finite number: {amount!r} is refused.")
        if type(amount) is not float:
            amount = float(amount)
        if self._lock is None:
            self._values[self._index] += amount
        else:
            with self._lock:
                self._values[self._index] += amount
        self._shown = True

    def dec(self, amount: float = 1.0) -> None:
        """Move the gauge down by `amount`."""
        self.inc(-amount)

    def clear(self) -> None:
        """Take the series out of the exposition until it is set again."""
        self._shown = False
        self._values[self._index] = 0.0

    def samples(self, name: str, labels: Mapping[str, str]) -> Iterator[Sample]:
        """Give the series as samples of the metric `name`; nothing while it has no value."""
        if self._shown:
            yield name, dict(labels), self._values[self._index]


class BoundHistogram:
    """One series of a histogram: a count for each bucket, one above all bounds, then the sum."""

    __slots__ = ("_bounds", "_first", "_le", "_lock", "_sum", "_values")

    def __init__(self, store: Store, bounds: tuple[float, ...], le: tuple[str, ...]) -> None:
        self._first = store.allocate(len(bounds) + 2)
        self._sum = self._first + len(bounds) + 1
        self._values = store.values
        self._lock = store.lock
        self._bounds = bounds
        self._le = le

    def observe(self, value: float) -> None:
        """Add `value` to the distribution.

        Raises:
            MetricError: `value` is infinite or not a number: it would spoil the sum for good.
        """
        if not -_INF < value < _INF:
            raise MetricError(f"A histogram takes finite numbers: {value!r} is refused.")
        if type(value) is not float:
            value = float(value)
        index = self._first + bisect_left(self._bounds, value)
        if self._lock is None:
            self._values[index] += 1.0
            self._values[self._sum] += value
        else:
            with self._lock:
                self._values[index] += 1.0
                self._values[self._sum] += value

    def time(self, unit: Literal["s", "ms"] = "s") -> Timer:
        """Return a context manager that observes how long its block took, also when it raises.

        Args:
            unit: Unit of the histogram: seconds or milliseconds.
        """
        return Timer(self, unit)

    def samples(self, name: str, labels: Mapping[str, str]) -> Iterator[Sample]:
        """Give the series as samples of the metric `name`: buckets that add up, then count and sum."""
        counts = self._values[self._first : self._sum]
        total, bucket = 0.0, name + "_bucket"
        for le, count in zip(self._le, counts, strict=True):
            total += count
            yield bucket, {**labels, "le": le}, total
        yield name + "_count", dict(labels), total
        yield name + "_sum", dict(labels), self._values[self._sum]


class Timer:
    """Observes the time that a block takes."""

    __slots__ = ("_factor", "_histogram", "_start")

    def __init__(self, histogram: BoundHistogram, unit: Literal["s", "ms"]) -> None:
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

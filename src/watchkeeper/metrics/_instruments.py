"""Counter, gauge and histogram: a name, labels, and one bound series for each label set."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._children import CounterChild, GaugeChild, HistogramChild, Timer
from watchkeeper.metrics._overflow import LostCounter, LostGauge, LostHistogram
from watchkeeper.metrics._validation import label_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from watchkeeper.metrics._family import Family, Kind
    from watchkeeper.metrics._store import Memory, Store

_Child = TypeVar("_Child", CounterChild, GaugeChild, HistogramChild)


class Instrument(ABC, Generic[_Child]):
    """What counter, gauge and histogram share: a family, and its series by label values.

    Args:
        store: Where the series count.
        family: What is declared.
        known: Label sets that are there from the start.
        max_series: How many series it may have.
        on_overflow: Called with the instrument and why, for each event that finds no series.

    Raises:
        MetricError: A known label set has other names than the family.
    """

    def __init__(
        self,
        store: Store,
        family: Family,
        *,
        known: Iterable[Mapping[str, str]] = (),
        max_series: int,
        on_overflow: Callable[[Family, str], None],
    ) -> None:
        self.family = family
        self._store = store
        self._max_series = max_series
        self._on_overflow = on_overflow
        self._children: dict[tuple[str, ...], _Child] = {}
        if family.kind != "gauge" and not family.labels:
            self._only()
        for values in known:
            self._make_known(self.labels(**values))

    @property
    def name(self) -> str:
        """Its name, as declared."""
        return self.family.name

    @property
    def kind(self) -> Kind:
        """What it is."""
        return self.family.kind

    def labels(self, /, **values: str) -> _Child:
        """Return the series with these label values, made at its first use; keep it where speed matters.

        Once the metric has as many series as it may have, what a new one would count is counted as lost.

        Raises:
            MetricError: The names are not exactly those of the metric.
        """
        try:
            key = tuple([values[label] for label in self.family.labels])
        except KeyError:
            raise self._wrong_labels(values) from None
        if len(values) != len(key):
            raise self._wrong_labels(values)
        child = self._children.get(key)
        # 1, 1.0 and True are equal as keys and differ as text: only text is looked up without a detour.
        if child is not None and all(type(value) is str for value in key):
            return child
        return self._birth_of(tuple([label_text(value) for value in key]))

    def holds(self, child: _Child) -> bool:
        """Say whether `child` is a series, and not what stands in for one that may not be made."""
        return type(child) is self._class

    def series(self) -> Iterator[tuple[tuple[str, ...], _Child]]:
        """Give the label values and the series, in the order of their birth."""
        yield from list(self._children.items())

    def move(self, memory: Memory, places: Mapping[tuple[str, ...], int], *, carry: bool) -> None:
        """Let all series count in `memory` from now on.

        Args:
            memory: Where to.
            places: The first cell of each series there.
            carry: Whether what was counted so far comes along.
        """
        for labels, child in self.series():
            with self._store.lock or contextlib.nullcontext():
                child.move(memory.values, places[labels], self.family.width, carry=carry)

    @property
    @abstractmethod
    def _class(self) -> type[_Child]:
        """What its series are."""

    @abstractmethod
    def _lost(self, lose: Callable[[], None]) -> _Child:
        """Make what stands in for a series that may not be made."""

    def _make_known(self, child: _Child) -> None:
        """Do what a series needs to be exposed before its first event."""

    def _birth_of(self, key: tuple[str, ...]) -> _Child:
        with self._store.growth:
            child = self._children.get(key)
            if child is not None:
                return child
            memory = self._store.memory
            # What predecessors left counts too, or a worker that restarts again and again would know no cap.
            if memory.count(self.family) >= self._max_series and not memory.has(self.family, key):
                return self._overflow(f"it has {self._max_series} series, its cap")
            try:
                child = self._class(self._store, self.family, key)
            except OSError as error:
                return self._overflow(f"there is no room for another series ({error.strerror or error})")
            self._children[key] = child
            return child

    def _overflow(self, reason: str) -> _Child:
        return self._lost(lambda: self._on_overflow(self.family, reason))

    def _only(self) -> _Child:
        child = self._children.get(())
        if child is not None:
            return child
        if self.family.labels:
            raise MetricError(
                f"The {self.kind} {self.name!r} has labels: call labels({self._example()}) first."
            )
        return self._birth_of(())

    def _wrong_labels(self, given: Mapping[str, object]) -> MetricError:
        takes = f"labels({self._example()})" if self.family.labels else "no labels"
        return MetricError(
            f"The {self.kind} {self.name!r} takes {takes}, not {', '.join(sorted(given)) or 'none'}."
        )

    def _example(self) -> str:
        return ", ".join(f"{label}=…" for label in self.family.labels)


class Counter(Instrument[CounterChild]):
    """A number that only goes up; without labels it counts by itself, from 0 at its declaration."""

    _class = CounterChild

    def inc(self, amount: float = 1.0, exemplar: Mapping[str, str] | None = None) -> None:
        """Count `amount` more; see `CounterChild.inc`."""
        self._only().inc(amount, exemplar)

    def _lost(self, lose: Callable[[], None]) -> CounterChild:
        return LostCounter(lose)


class Gauge(Instrument[GaugeChild]):
    """A number that goes up and down; it is exposed from its first value on."""

    _class = GaugeChild

    def set(self, value: float) -> None:
        """Put the gauge at `value`; see `GaugeChild.set`."""
        self._only().set(value)

    def inc(self, amount: float = 1.0) -> None:
        """Move the gauge up by `amount`; see `GaugeChild.inc`."""
        self._only().inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Move the gauge down by `amount`."""
        self._only().dec(amount)

    def clear(self) -> None:
        """Take all series out of the exposition, for what is not known any more; each set brings one back."""
        for _, child in self.series():
            child.clear()

    def _lost(self, lose: Callable[[], None]) -> GaugeChild:
        return LostGauge(lose)

    def _make_known(self, child: GaugeChild) -> None:
        child.set(0.0)


class Histogram(Instrument[HistogramChild]):
    """A distribution over fixed buckets; without labels it observes by itself."""

    _class = HistogramChild

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Add `value` to the distribution; see `HistogramChild.observe`."""
        self._only().observe(value, exemplar)

    def time(self, unit: Literal["s", "ms"] = "s") -> Timer:
        """Return a context manager that observes how long its block took; see `HistogramChild.time`."""
        return self._only().time(unit)

    def _lost(self, lose: Callable[[], None]) -> HistogramChild:
        return LostHistogram(lose)

"""Counter, gauge and histogram: a name, labels, and one child for each label set."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, cast

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._children import CounterChild, GaugeChild, HistogramChild, Timer
from watchkeeper.metrics._overflow import LostChild
from watchkeeper.metrics._validation import label_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from watchkeeper.metrics._family import Family
    from watchkeeper.metrics._store import Memory, Store

_Child = TypeVar("_Child", CounterChild, GaugeChild, HistogramChild)


class Instrument(ABC, Generic[_Child]):
    """What counter, gauge and histogram have in common: a family, and its children by label values."""

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
            self._only_child()
        for values in known:
            self._make_known(self.labels(**values))

    @property
    def name(self) -> str:
        """Its name, as declared."""
        return self.family.name

    def labels(self, /, **values: str) -> _Child:
        """Return the child with these label values, created at its first use; keep it where speed matters.

        At the metric's cap, what a new child would count is counted in `metrics_overflow_total`.
        """
        try:
            key = tuple([values[label] for label in self.family.labels])
        except KeyError:
            raise self._wrong_labels(values) from None
        if len(values) != len(key):
            raise self._wrong_labels(values)
        child = self._children.get(key)
        # 1, 1.0 and True are equal as keys but not as text, so only text may use this short way.
        if child is not None and all(type(value) is str for value in key):
            return child
        return self._get_or_create(tuple([label_text(value) for value in key]))

    def holds(self, child: _Child) -> bool:
        """Return whether `child` is a series, and not a stand-in that counts lost events."""
        return type(child) is self._class

    def children(self) -> Iterator[tuple[tuple[str, ...], _Child]]:
        """Yield label values and child, in the order of creation."""
        yield from list(self._children.items())

    def move(self, memory: Memory, places: Mapping[tuple[str, ...], int], *, carry: bool) -> None:
        """Let all children count in `memory`, each from its first cell in `places`; see `Child.move`."""
        for labels, child in self.children():
            with self._store.lock or contextlib.nullcontext():
                child.move(memory.values, places[labels], self.family.width, carry=carry)

    @property
    @abstractmethod
    def _class(self) -> type[_Child]:
        """The class of its children."""

    def _make_known(self, child: _Child) -> None:
        """Do what a child needs to be exposed before its first event."""

    def _get_or_create(self, key: tuple[str, ...]) -> _Child:
        with self._store.growth:
            child = self._children.get(key)
            if child is not None:
                return child
            memory = self._store.memory
            # Series of earlier workers count too, or a worker that restarts again and again would have no
            # cap.
            if memory.count(self.family) >= self._max_series and not memory.has(self.family, key):
                return self._overflow(f"it has {self._max_series} series, its cap")
            try:
                child = self._class(self._store, self.family, key)
            except OSError as error:
                return self._overflow(f"there is no room for another series ({error.strerror or error})")
            self._children[key] = child
            return child

    def _overflow(self, reason: str) -> _Child:
        return cast("_Child", LostChild(lambda: self._on_overflow(self.family, reason)))

    def _only_child(self) -> _Child:
        child = self._children.get(())
        if child is not None:
            return child
        if self.family.labels:
            raise MetricError(
                f"The {self.family.kind} {self.name!r} has labels: call labels({self._example()}) first."
            )
        return self._get_or_create(())

    def _wrong_labels(self, given: Mapping[str, object]) -> MetricError:
        takes = f"labels({self._example()})" if self.family.labels else "no labels"
        return MetricError(
            f"The {self.family.kind} {self.name!r} takes {takes}, not {', '.join(sorted(given)) or 'none'}."
        )

    def _example(self) -> str:
        return ", ".join(f"{label}=…" for label in self.family.labels)


class Counter(Instrument[CounterChild]):
    """A number that only goes up; without labels it is exposed at 0 from its declaration."""

    _class = CounterChild

    def inc(self, amount: float = 1.0, exemplar: Mapping[str, str] | None = None) -> None:
        """Add `amount` to the counter.

        Args:
            amount: What to add; default 1.
            exemplar: Labels that identify this event, such as its trace id; at most 128 characters in all
                (OpenMetrics 1.0, exemplars).

        Raises:
            MetricError: The counter has labels, or an argument cannot be used.
        """
        self._only_child().inc(amount, exemplar)


class Gauge(Instrument[GaugeChild]):
    """A number that goes up and down; it is exposed from its first value."""

    _class = GaugeChild

    def set(self, value: float) -> None:
        """Set the gauge to `value`; NaN means that the value is unknown."""
        self._only_child().set(value)

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount` (default 1) to the gauge.

        Raises:
            MetricError: The gauge has labels, or `multiprocess_mode="latest"` (no worker knows the latest
                value of all); or `amount` is not finite.
        """
        self._only_child().inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Subtract `amount` (default 1) from the gauge; see `inc`."""
        self._only_child().dec(amount)

    def clear(self) -> None:
        """Remove all series from the exposition, as their values are unknown; `set` brings each back."""
        for _, child in self.children():
            child.clear()

    def _make_known(self, child: GaugeChild) -> None:
        child.set(0.0)


class Histogram(Instrument[HistogramChild]):
    """A distribution over fixed buckets; without labels it is exposed at 0 from its declaration."""

    _class = HistogramChild

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Add `value` to the distribution; `exemplar` as for `Counter.inc`.

        Raises:
            MetricError: The histogram has labels, or an argument cannot be used.
        """
        self._only_child().observe(value, exemplar)

    def time(self, unit: Literal["s", "ms"] = "s") -> Timer:
        """Return a context manager that observes how long its block took, in the histogram's unit."""
        return self._only_child().time(unit)

"""Counter, gauge and histogram: a name, labels, and one bound series for each label set."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._bound import BoundCounter, BoundGauge, BoundHistogram, Timer
from watchkeeper.metrics._naming import check_labels, check_metric, checked_buckets, label_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from watchkeeper.metrics._bound import Sample
    from watchkeeper.metrics._store import Store

_Bound = TypeVar("_Bound", BoundCounter, BoundGauge, BoundHistogram)


class Instrument(ABC, Generic[_Bound]):
    """What counter, gauge and histogram share: a name, a help text, labels and their series."""

    kind: ClassVar[str]

    def __init__(
        self,
        store: Store,
        name: str,
        help_text: str,
        labels: Sequence[str],
        known: Iterable[Mapping[str, str]],
    ) -> None:
        check_metric(self.kind, name, help_text)
        check_labels(self.kind, name, labels)
        self.name = name
        self.help = help_text
        self.label_names = tuple(labels)
        self._store = store
        self._children: dict[tuple[str, ...], _Bound] = {}
        self._birth = threading.Lock()
        for values in known:
            self._make_known(self.labels(**values))

    def labels(self, /, **values: str) -> _Bound:
        """Return the series with these label values, made at its first use; keep it where speed matters.

        Raises:
            MetricError: The names are not exactly those of the metric.
        """
        try:
            key = tuple([values[label] for label in self.label_names])
        except KeyError:
            raise self._wrong_labels(values) from None
        if len(values) != len(key):
            raise self._wrong_labels(values)
        child = self._children.get(key)
        # 1, 1.0 and True are equal as keys and differ as text: only text is looked up without a detour.
        if child is not None and all(type(value) is str for value in key):
            return child
        return self._birth_of(tuple([label_text(value) for value in key]))

    def samples(self) -> Iterator[Sample]:
        """Give the samples of all series, in the order of their birth."""
        for key, child in list(self._children.items()):
            yield from child.samples(self.name, dict(zip(self.label_names, key, strict=True)))

    @abstractmethod
    def _new(self) -> _Bound:
        """Make a series."""

    def _make_known(self, child: _Bound) -> None:
        """Do what a series needs to be exposed before its first event."""

    def _birth_of(self, key: tuple[str, ...]) -> _Bound:
        with self._birth:
            child = self._children.get(key)
            if child is None:
                child = self._children[key] = self._new()
            return child

    def _only(self) -> _Bound:
        if self.label_names:
            raise MetricError(
                f"The {self.kind} {self.name!r} has labels: call labels({self._example()}) first."
            )
        return self._children.get(()) or self._birth_of(())

    def _wrong_labels(self, given: Mapping[str, object]) -> MetricError:
        takes = f"labels({self._example()})" if self.label_names else "no labels"
        return MetricError(
            f"The {self.kind} {self.name!r} takes {takes}, not {', '.join(sorted(given)) or 'none'}."
        )

    def _example(self) -> str:
        return ", ".join(f"{label}=…" for label in self.label_names)


class Counter(Instrument[BoundCounter]):
    """A number that only goes up; without labels it counts by itself, from 0 at its declaration."""

    kind = "counter"

    def __init__(
        self,
        store: Store,
        name: str,
        help_text: str,
        labels: Sequence[str],
        known: Iterable[Mapping[str, str]],
    ) -> None:
        super().__init__(store, name, help_text, labels, known)
        if not self.label_names:
            self._only()

    def inc(self, amount: float = 1.0) -> None:
        """Count `amount` more; see `BoundCounter.inc`."""
        self._only().inc(amount)

    def _new(self) -> BoundCounter:
        return BoundCounter(self._store)


class Gauge(Instrument[BoundGauge]):
    """A number that goes up and down; it is exposed from its first value on."""

    kind = "gauge"

    def set(self, value: float) -> None:
        """Put the gauge at `value`; see `BoundGauge.set`."""
        self._only().set(value)

    def inc(self, amount: float = 1.0) -> None:
        """Move the gauge up by `amount`; see `BoundGauge.inc`."""
        self._only().inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Move the gauge down by `amount`."""
        self._only().dec(amount)

    def clear(self) -> None:
        """Take all series out of the exposition, for what is not known any more; each set brings one back."""
        for child in list(self._children.values()):
            child.clear()

    def _new(self) -> BoundGauge:
        return BoundGauge(self._store)

    def _make_known(self, child: BoundGauge) -> None:
        child.set(0.0)


class Histogram(Instrument[BoundHistogram]):
    """A distribution over fixed buckets; without labels it observes by itself."""

    kind = "histogram"

    def __init__(  # noqa: PLR0913, PLR0917 - what all instruments take, and the buckets
        self,
        store: Store,
        name: str,
        help_text: str,
        labels: Sequence[str],
        known: Iterable[Mapping[str, str]],
        buckets: Sequence[float],
    ) -> None:
        self.bounds = checked_buckets(name, buckets)
        self._le = (*map(_le, self.bounds), "+Inf")
        super().__init__(store, name, help_text, labels, known)
        if not self.label_names:
            self._only()

    def observe(self, value: float) -> None:
        """Add `value` to the distribution; see `BoundHistogram.observe`."""
        self._only().observe(value)

    def time(self, unit: Literal["s", "ms"] = "s") -> Timer:
        """Return a context manager that observes how long its block took; see `BoundHistogram.time`."""
        return self._only().time(unit)

    def _new(self) -> BoundHistogram:
        return BoundHistogram(self._store, self.bounds, self._le)


def _le(bound: float) -> str:
    """Return a bucket's `le` as all Prometheus libraries for Python write it."""
    from prometheus_client import utils  # noqa: PLC0415 - heavy, so on first use

    return str(utils.floatToGoString(bound))  # type: ignore[no-untyped-call] # it has no types

"""The registry: declares the instruments of one process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TypeVar

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._family import Family
from watchkeeper.metrics._instruments import Counter, Gauge, Histogram
from watchkeeper.metrics._names import Names
from watchkeeper.metrics._store import Store
from watchkeeper.metrics._validation import check_family, checked_buckets, checked_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prometheus_client import CollectorRegistry

    from watchkeeper.metrics._family import Kind, MultiprocessMode
    from watchkeeper.metrics._store import Memory

_Instrument = TypeVar("_Instrument", Counter, Gauge, Histogram)


class Registry:
    """Declares instruments; a keeper has one, and exposes it at `/metrics`.

    Args:
        third_party: The registry of prometheus_client that is exposed too; default: its global one, which
            also holds the metrics of the process (CPU, memory, open files).
        on_error: Called with each distinct problem once: a name clash that appears later, a collector that
            fails, a metric that reaches its cap. Default: the call that meets the problem raises it, except
            for a metric at its cap.
        max_series: How many series a metric may have in a process, unless its declaration says otherwise;
            default: any number.
    """

    def __init__(
        self,
        *,
        third_party: CollectorRegistry | None = None,
        on_error: Callable[[MetricError], None] | None = None,
        max_series: int | None = None,
    ) -> None:
        if max_series is not None and max_series < 1:
            raise MetricError(f"A metric needs one series or more: max_series {max_series} is refused.")
        self.store: Final = Store()
        self.names: Final = Names(third_party)
        self._on_error = on_error
        self._max_series = sys.maxsize if max_series is None else max_series
        self._reported: set[str] = set()
        self._instruments: dict[str, Counter | Gauge | Histogram] = {}
        self._overflow: Counter | None = None
        self._overflow = self.counter(
            "metrics_overflow_total",
            "Events that found no series: their metric is at its cap, or there is no room.",
            ("metric",),
            max_series=sys.maxsize,  # one for each metric
        )

    def counter(
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus's own word
        labels: Sequence[str] = (),
        *,
        known: Iterable[Mapping[str, str]] = (),
        max_series: int | None = None,
    ) -> Counter:
        """Declare a counter.

        Args:
            name: Ends in `_total`.
            help: What it counts, in a sentence.
            labels: Names of its labels; default: none.
            known: Label sets that are exposed at 0 from now on, before their first event.
            max_series: How many series it may have in a process; default: the registry's.

        Raises:
            MetricError: The declaration is not valid, or a name is in use.
        """
        family = Family("counter", name, help, checked_labels(name, labels))
        return self._declare(Counter, family, known, max_series)

    def gauge(  # noqa: PLR0913 - the options of a gauge
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus's own word
        labels: Sequence[str] = (),
        *,
        multiprocess_mode: MultiprocessMode = "latest",
        known: Iterable[Mapping[str, str]] = (),
        max_series: int | None = None,
    ) -> Gauge:
        """Declare a gauge; see `counter`.

        Args:
            name: With its unit at the end.
            help: What it shows, in a sentence.
            labels: Names of its labels; default: none.
            multiprocess_mode: How the values of the running workers become one: "latest" (default) is the
                value set last, for what every worker knows, such as a figure of the database; "sum", "max"
                and "min" combine them; "worker" exposes each with the worker's number as a label.
            known: Label sets that are exposed at 0 from now on; others from their first value.
            max_series: How many series it may have in a process; default: the registry's.
        """
        family = Family("gauge", name, help, checked_labels(name, labels), (), multiprocess_mode)
        return self._declare(Gauge, family, known, max_series)

    def histogram(  # noqa: PLR0913 - the options of a histogram
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus's own word
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        known: Iterable[Mapping[str, str]] = (),
        max_series: int | None = None,
    ) -> Histogram:
        """Declare a histogram; see `counter`.

        Args:
            name: With its unit at the end.
            help: What it measures, in a sentence.
            labels: Names of its labels; default: none.
            buckets: Rising upper bounds in the unit of the name; +Inf is added.
            known: Label sets that are exposed at 0 from now on, before their first event.
            max_series: How many series it may have in a process; default: the registry's.
        """
        bounds = checked_buckets(name, buckets)
        family = Family("histogram", name, help, checked_labels(name, labels), bounds)
        return self._declare(Histogram, family, known, max_series)

    def reserve(self, kind: Kind, name: str) -> Callable[[], None]:
        """Keep a name for a metric that is declared later; call the result just before its declaration."""
        with self.store.growth:
            return self.names.reserve(kind, name)

    def families(self) -> dict[str, Family]:
        """Return what is declared, by name, in the order of declaration."""
        return {name: instrument.family for name, instrument in list(self._instruments.items())}

    def move_to(self, memory: Memory, *, carry: bool) -> None:
        """Count in `memory` from now on, or raise `OSError`; `carry` adds what was counted so far."""
        with self.store.growth:
            instruments = list(self._instruments.values())
            # Find room for every series before the first one moves.
            places = [
                {labels: memory.place(one.family, labels) for labels, _ in one.children()}
                for one in instruments
            ]
            self.store.memory = memory
            self.store.exemplars = {}
            for instrument, of_instrument in zip(instruments, places, strict=True):
                instrument.move(memory, of_instrument, carry=carry)

    def report(self, error: MetricError) -> None:
        """Pass a problem to `on_error`, once for each text; without `on_error`, do nothing."""
        if self._on_error is not None and str(error) not in self._reported:
            self._reported.add(str(error))
            self._on_error(error)

    def report_or_raise(self, error: MetricError) -> None:
        """Pass a problem to `on_error`, once for each text; without `on_error`, raise it."""
        if self._on_error is None:
            raise error
        self.report(error)

    def _declare(
        self,
        kind: type[_Instrument],
        family: Family,
        known: Iterable[Mapping[str, str]],
        max_series: int | None,
    ) -> _Instrument:
        check_family(family)
        # Under the lock, so that a move to other memory waits until the instrument has all its series.
        with self.store.growth:
            self.names.check(family)
            instrument = kind(
                self.store,
                family,
                known=known,
                max_series=self._max_series if max_series is None else max_series,
                on_overflow=self._count_overflow,
            )
            self._instruments[family.name] = instrument
            self.names.add(family.kind, family.name)
            if self._overflow is not None:
                self._overflow.labels(metric=family.name)
        return instrument

    def _count_overflow(self, family: Family, reason: str) -> None:
        if self._overflow is not None and self._overflow.family is not family:
            self._overflow.labels(metric=family.name).inc()
        self.report(
            MetricError(
                f"The {family.kind} {family.name!r} gets no new series: {reason}. What they would count is"
                " counted in metrics_overflow_total. Look for a label with unbounded values; max_series"
                " raises the cap."
            )
        )

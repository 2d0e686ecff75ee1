"""The registry: where instruments are declared, and what a scrape reads."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Final, TypeVar

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._family import Family
from watchkeeper.metrics._instruments import Counter, Gauge, Histogram
from watchkeeper.metrics._naming import check_family, checked_buckets, checked_labels, exposed_names
from watchkeeper.metrics._store import LocalMemory, Store
from watchkeeper.metrics.exposition._exposition import Exposition, prefers_openmetrics
from watchkeeper.metrics.exposition._reader import Reader
from watchkeeper.metrics.exposition._third_party import (
    check_free,
    collect_third_party,
    default_registry,
    write_third_party,
)
from watchkeeper.metrics.shared._instance import remove_unused
from watchkeeper.metrics.shared._peer import running_in
from watchkeeper.metrics.shared._slot import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from watchkeeper.metrics._family import Kind, MultiprocessMode
    from watchkeeper.metrics._store import Exemplar, Memory
    from watchkeeper.metrics.exposition._third_party import ThirdPartyFamily

_Any = TypeVar("_Any", Counter, Gauge, Histogram)


class Registry:
    """Declares instruments and renders them, together with what prometheus_client's registry holds.

    Args:
        third_party: The registry of prometheus_client to expose too; default: its global one, which also
            holds the process's own figures.
        on_error: Called with what went wrong with metrics (a clash of names that came up later, a collector
            that failed, a metric at its cap), each text once; default: whoever caused it gets the error, but
            for a metric at its cap.
        max_series: How many series a metric may have in a process, unless it is declared with another cap;
            default: any number.
        created: Whether OpenMetrics tells when series began; Prometheus would store that as a series each.
    """

    def __init__(
        self,
        *,
        third_party: CollectorRegistry | None = None,
        on_error: Callable[[MetricError], None] | None = None,
        max_series: int | None = None,
        created: bool = False,
    ) -> None:
        if max_series is not None and max_series < 1:
            raise MetricError(f"A metric needs one series or more: max_series {max_series} is refused.")
        self._store = Store()
        self._given_third_party = third_party
        self._max_series = sys.maxsize if max_series is None else max_series
        self._created = created
        self.on_error = on_error
        self._reported: set[str] = set()
        self._instruments: dict[str, Counter | Gauge | Histogram] = {}
        self._names: dict[str, str] = {}
        self._slot: Slot | None = None
        self.folder: Path | None = None
        self._reader = Reader(self._store.memory, self._report)
        self._overflow: Counter | None = None
        self._overflow = self.counter(
            "metrics_overflow_total",
            "Events that found no series: their metric is at its cap, or there is no room.",
            ("metric",),
            max_series=sys.maxsize,  # as many as there are metrics
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
            labels: Names of its labels.
            known: Label sets that are exposed at 0 from now on, before their first event.
            max_series: How many series it may have in a process; default: the registry's.

        Raises:
            MetricError: The declaration is not usable, or a name is taken.
        """
        family = Family("counter", name, help, checked_labels(name, labels))
        return self._declare(Counter, family, known, max_series)

    def gauge(  # noqa: PLR0913 - what can be said of a gauge
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus's own word
        labels: Sequence[str] = (),
        *,
        multiprocess_mode: MultiprocessMode = "latest",
        known: Iterable[Mapping[str, str]] = (),
        max_series: int | None = None,
    ) -> Gauge:
        """Declare a gauge.

        Args:
            name: With its unit at the end.
            help: What it shows, in a sentence.
            labels: Names of its labels.
            multiprocess_mode: How the values of the running workers become one: "latest" is the value set
                last (for what every worker knows, such as a figure of the database), "sum", "max" and "min"
                combine them, "worker" exposes each with the worker's number as a label.
            known: Label sets that are exposed at 0 from now on; the others from their first value on.
            max_series: How many series it may have in a process; default: the registry's.

        Raises:
            MetricError: The declaration is not usable, or a name is taken.
        """
        family = Family(
            "gauge", name, help, checked_labels(name, labels), multiprocess_mode=multiprocess_mode
        )
        return self._declare(Gauge, family, known, max_series)

    def histogram(  # noqa: PLR0913 - what can be said of a histogram
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus's own word
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        known: Iterable[Mapping[str, str]] = (),
        max_series: int | None = None,
    ) -> Histogram:
        """Declare a histogram.

        Args:
            name: With its unit at the end.
            help: What it measures, in a sentence.
            labels: Names of its labels.
            buckets: Rising upper bounds; the one above all is understood.
            known: Label sets that are exposed at 0 from now on, before their first event.
            max_series: How many series it may have in a process; default: the registry's.

        Raises:
            MetricError: The declaration is not usable, or a name is taken.
        """
        bounds = checked_buckets(name, buckets)
        family = Family("histogram", name, help, checked_labels(name, labels), bounds)
        return self._declare(Histogram, family, known, max_series)

    def share(self, folder: Path, *, temporary: bool = False) -> int:
        """Become one worker of the instance in `folder`, with all that was counted so far.

        From now on values are in a slot file of this process there, and every scrape of every worker shows
        the figures of all. A second call changes nothing.

        Args:
            folder: Of the instance; only the processes of this service may write there.
            temporary: Whether the instance ends with this process: the folder goes then.

        Returns:
            The number of this worker.

        Raises:
            MetricError: There is no room, or the folder is not usable; this process then counts by itself.
        """
        if self._slot is not None:
            return self._slot.number
        try:
            slot = Slot.claim(folder, self._tell)
        except OSError as error:
            raise MetricError(f"Metrics cannot be shared in {folder}: {error.strerror or error}.") from error
        try:
            self._move(slot, carry=True)
        except OSError as error:
            slot.let_go()
            raise MetricError(f"Metrics cannot be shared in {folder}: {error.strerror or error}.") from error
        self._enter(slot, folder)
        _shared.add(self)
        leaving = weakref.finalize(self, _leave, slot, folder, os.getpid(), temporary=temporary)
        leaving.atexit = temporary  # the lock of a worker goes with its process, after its last count
        return slot.number

    def render(self, accept: str = "") -> Exposition:
        """Render all metrics for a scraper, of all workers but for what others have of prometheus_client.

        Args:
            accept: The scraper's Accept header.

        Raises:
            MetricError: Something cannot be exposed and there is no `on_error`.
        """
        openmetrics = prefers_openmetrics(accept)
        texts = [
            *self.steps(openmetrics=openmetrics),
            self.write_third_party(self.collect_third_party(), openmetrics=openmetrics),
        ]
        return Exposition.of((text.encode() for text in texts), openmetrics=openmetrics)

    def steps(
        self, *, openmetrics: bool, exemplars: Mapping[int, Mapping[int, Exemplar]] | None = None
    ) -> Iterator[str]:
        """Render our own metrics in pieces that take a millisecond or two each.

        Args:
            openmetrics: Whether to write OpenMetrics.
            exemplars: Those of other workers, by number and cell.
        """
        reader = self._reader
        if reader.is_busy:  # with a scrape that has not come to its end
            reader = Reader(self._store.memory, self._report)
            reader.read_from(self.worker, self._store.memory, self.folder)
        return reader.steps(
            self._families(),
            openmetrics=openmetrics,
            created=self._created,
            exemplars={**(exemplars or {}), self.worker: dict(self._store.exemplars)},
        )

    @property
    def worker(self) -> int:
        """The number of this worker: 0 where it is the only one."""
        return 0 if self._slot is None else self._slot.number

    def other_workers(self) -> frozenset[int]:
        """Return the numbers of the other workers that run now."""
        return frozenset() if self.folder is None else running_in(self.folder) - {self.worker}

    @property
    def exemplars(self) -> Mapping[int, Exemplar]:
        """The exemplars of this process, by cell."""
        return dict(self._store.exemplars)

    def collect_third_party(self) -> list[ThirdPartyFamily]:
        """Return what prometheus_client's registry holds in this process; it may take its time.

        Raises:
            MetricError: Something cannot be exposed and there is no `on_error`.
        """
        worker = None if self._slot is None else str(self._slot.number)
        return collect_third_party(self._third_party(), dict(self._names), self._report, worker)

    @staticmethod
    def write_third_party(families: Sequence[ThirdPartyFamily], *, openmetrics: bool) -> str:
        """Write what prometheus_client's registries hold, of this worker and of others."""
        return write_third_party(families, openmetrics=openmetrics)

    def sample(self, name: str, /, **labels: str) -> float | None:
        """Return the value of one of our own samples, as an exposition names it; None where there is none.

        Args:
            name: Such as `jobs_total`, or `job_duration_seconds_count` of a histogram.
            labels: All labels of the sample.
        """
        from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - heavy

        text = "".join(self.steps(openmetrics=False))
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None

    def check(self) -> None:
        """Refuse clashes with what prometheus_client's registry got since our declarations.

        Raises:
            MetricError: With the names on both sides.
        """
        for family in self._families().values():
            check_free(family, self._third_party())

    def begin_in_child(self) -> None:
        """Be a worker of its own in a forked child: the slot it has belongs to its parent."""
        self._store.growth = threading.RLock()
        self._store.exemplars = {}
        parent, self._slot = self._slot, None
        if parent is not None:
            parent.let_go()
        assert self.folder is not None  # noqa: S101 - share has set it
        try:
            slot = Slot.claim(self.folder, self._tell)
            self._move(slot, carry=False)
        except (OSError, MetricError):  # what it counts is its own then, and nobody shows it
            self._move(LocalMemory(), carry=False)
            self._reader.read_from(0, self._store.memory, None)
            self.folder = None
            _shared.discard(self)
        else:
            self._enter(slot, self.folder)

    def _enter(self, slot: Slot, folder: Path) -> None:
        self._slot = slot
        self.folder = folder
        self._reader.read_from(slot.number, slot, folder)

    def _move(self, memory: Memory, *, carry: bool) -> None:
        with self._store.growth:
            instruments = list(self._instruments.values())
            # All places first: where there is no room for one, nothing has moved.
            places = [
                {labels: memory.place(one.family, labels) for labels, _ in one.series()}
                for one in instruments
            ]
            self._store.memory = memory
            self._store.exemplars = {}
            for instrument, of_instrument in zip(instruments, places, strict=True):
                instrument.move(memory, of_instrument, carry=carry)

    def reserve(self, kind: Kind, name: str) -> Callable[[], None]:
        """Keep a name for a metric that is declared later; return what gives it free for that.

        Args:
            kind: Of the metric.
            name: Of the metric.

        Raises:
            MetricError: The name is taken.
        """
        names = exposed_names(kind, name)
        with self._store.growth:
            taken = sorted(names & self._names.keys())
            if taken:
                raise MetricError(
                    f"The {kind} {name!r} clashes with {self._names[taken[0]]}: rename that one."
                )
            self._names.update(dict.fromkeys(names, f"the {kind} {name!r}"))

        def release() -> None:
            for one in names:
                self._names.pop(one, None)

        return release

    def _declare(
        self,
        kind: type[_Any],
        family: Family,
        known: Iterable[Mapping[str, str]],
        max_series: int | None,
    ) -> _Any:
        check_family(family)
        names = exposed_names(family.kind, family.name)
        # Also against a move to other memory, which would not find the series of what is half declared.
        with self._store.growth:
            taken = sorted(names & self._names.keys())
            if taken:
                raise MetricError(
                    f"The {family.kind} {family.name!r} clashes with {self._names[taken[0]]} over the"
                    f" name {taken[0]!r}: declare a metric once, or rename one of the two."
                )
            check_free(family, self._third_party())
            instrument = kind(
                self._store,
                family,
                known=known,
                max_series=self._max_series if max_series is None else max_series,
                on_overflow=self._count_overflow,
            )
            self._instruments[family.name] = instrument
            self._names.update(dict.fromkeys(names, f"the {family.kind} {family.name!r}"))
            if self._overflow is not None:
                self._overflow.labels(metric=family.name)
        return instrument

    def _count_overflow(self, family: Family, reason: str) -> None:
        if self._overflow is not None and self._overflow.family is not family:
            self._overflow.labels(metric=family.name).inc()
        self._tell(
            MetricError(
                f"The {family.kind} {family.name!r} gets no new series: {reason}. What they would count is"
                " counted in metrics_overflow_total. Look for a label that takes any value; max_series raises"
                " the cap."
            )
        )

    def _families(self) -> dict[str, Family]:
        return {name: instrument.family for name, instrument in list(self._instruments.items())}

    def _third_party(self) -> CollectorRegistry:
        return default_registry() if self._given_third_party is None else self._given_third_party

    def _report(self, error: MetricError) -> None:
        if self.on_error is None:
            raise error
        self._tell(error)

    def _tell(self, error: MetricError) -> None:
        if self.on_error is not None and str(error) not in self._reported:
            self._reported.add(str(error))
            self.on_error(error)


_shared: Final[weakref.WeakSet[Registry]] = weakref.WeakSet()


def _leave(slot: Slot, folder: Path, process: int, *, temporary: bool) -> None:
    if os.getpid() == process:  # a forked child ends without touching what is its parent's
        slot.let_go()
        if temporary:
            remove_unused(folder)


def _begin_in_child() -> None:
    for registry in list(_shared):
        registry.begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)

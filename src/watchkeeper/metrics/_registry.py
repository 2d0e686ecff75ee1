"""The registry: where instruments are declared, and what a scrape reads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._exposition import Exposition, write
from watchkeeper.metrics._foreign import check_free, collect_foreign, default_registry, family_of
from watchkeeper.metrics._instruments import Counter, Gauge, Histogram
from watchkeeper.metrics._naming import exposed_names
from watchkeeper.metrics._store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prometheus_client import CollectorRegistry

_Any = TypeVar("_Any", Counter, Gauge, Histogram)


class Registry:
    """Declares instruments and renders them, together with what prometheus_client's registry holds.

    Args:
        foreign: The registry of prometheus_client to expose too; default: its global one, which also holds
            the process's own figures.
        on_error: Called with what a scrape had to leave out (a clash of names that came up later, a
            collector that failed), each text once; default: the scrape raises it.
    """

    def __init__(
        self,
        *,
        foreign: CollectorRegistry | None = None,
        on_error: Callable[[MetricError], None] | None = None,
    ) -> None:
        self._store = Store()
        self._given_foreign = foreign
        self.on_error = on_error
        self._reported: set[str] = set()
        self._instruments: dict[str, Counter | Gauge | Histogram] = {}
        self._names: dict[str, str] = {}
        self._declaring = threading.Lock()

    def counter(
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus's own word
        labels: Sequence[str] = (),
        *,
        known: Iterable[Mapping[str, str]] = (),
    ) -> Counter:
        """Declare a counter.

        Args:
            name: Ends in `_total`.
            help: What it counts, in a sentence.
            labels: Names of its labels.
            known: Label sets that are exposed at 0 from now on, before their first event.

        Raises:
            MetricError: The declaration is not usable, or a name is taken.
        """
        return self._declare(Counter(self._store, name, help, labels, known))

    def gauge(
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus's own word
        labels: Sequence[str] = (),
        *,
        known: Iterable[Mapping[str, str]] = (),
    ) -> Gauge:
        """Declare a gauge.

        Args:
            name: With its unit at the end.
            help: What it shows, in a sentence.
            labels: Names of its labels.
            known: Label sets that are exposed at 0 from now on; the others from their first value on.

        Raises:
            MetricError: The declaration is not usable, or a name is taken.
        """
        return self._declare(Gauge(self._store, name, help, labels, known))

    def histogram(
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus's own word
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        known: Iterable[Mapping[str, str]] = (),
    ) -> Histogram:
        """Declare a histogram.

        Args:
            name: With its unit at the end.
            help: What it measures, in a sentence.
            labels: Names of its labels.
            buckets: Rising upper bounds; the one above all is understood.
            known: Label sets that are exposed at 0 from now on, before their first event.

        Raises:
            MetricError: The declaration is not usable, or a name is taken.
        """
        return self._declare(Histogram(self._store, name, help, labels, known, buckets))

    def render(self, accept: str = "") -> Exposition:
        """Render all metrics for a scraper.

        Args:
            accept: The scraper's Accept header.

        Raises:
            MetricError: Something cannot be exposed and there is no `on_error`.
        """
        families = [family_of(instrument) for instrument in list(self._instruments.values())]
        families += collect_foreign(self._foreign(), dict(self._names), self._report)
        return write(families, accept)

    def sample(self, name: str, /, **labels: str) -> float | None:
        """Return the value of one of our own samples, as an exposition names it; None where there is none.

        Args:
            name: Such as `jobs_total`, or `job_duration_seconds_count` of a histogram.
            labels: All labels of the sample.
        """
        for instrument in list(self._instruments.values()):
            for sample_name, sample_labels, value in instrument.samples():
                if sample_name == name and sample_labels == labels:
                    return value
        return None

    def check(self) -> None:
        """Refuse clashes with what prometheus_client's registry got since our declarations.

        Raises:
            MetricError: With the names on both sides.
        """
        for instrument in list(self._instruments.values()):
            check_free(instrument, self._foreign())

    def _declare(self, instrument: _Any) -> _Any:
        names = exposed_names(instrument.kind, instrument.name)
        with self._declaring:
            taken = sorted(names & self._names.keys())
            if taken:
                raise MetricError(
                    f"The {instrument.kind} {instrument.name!r} clashes with {self._names[taken[0]]} over the"
                    f" name {taken[0]!r}: declare a metric once, or rename one of the two."
                )
            check_free(instrument, self._foreign())
            self._instruments[instrument.name] = instrument
            self._names.update(dict.fromkeys(names, f"the {instrument.kind} {instrument.name!r}"))
        return instrument

    def _foreign(self) -> CollectorRegistry:
        return default_registry() if self._given_foreign is None else self._given_foreign

    def _report(self, error: MetricError) -> None:
        if self.on_error is None:
            raise error
        if str(error) not in self._reported:
            self._reported.add(str(error))
            self.on_error(error)

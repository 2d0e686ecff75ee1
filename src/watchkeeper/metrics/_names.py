"""The names in use: each belongs to one metric, ours or one in `prometheus_client`'s registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MetricError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry, Metric

    from watchkeeper.metrics._family import Family, Kind

_HISTOGRAM_SUFFIXES: Final = ("_bucket", "_sum", "_count")


class Names:
    """The names that the metrics of one registry, and of `third_party` (default the global one), have."""

    def __init__(self, third_party: CollectorRegistry | None) -> None:
        self.owners: dict[str, str] = {}  # every name of ours, with the metric that it belongs to
        self._given_third_party = third_party

    @property
    def third_party(self) -> CollectorRegistry:
        """The registry of prometheus_client."""
        if self._given_third_party is not None:
            return self._given_third_party
        from prometheus_client import REGISTRY  # noqa: PLC0415 - heavy, so on first use

        return REGISTRY

    def check(self, family: Family) -> None:
        """Raise MetricError, naming both metrics, if a name of `family` is in use."""
        taken = sorted(_exposed_names(family.kind, family.name) & self.owners.keys())
        if taken:
            raise MetricError(
                f"The {family.kind} {family.name!r} clashes with {self.owners[taken[0]]} over the name"
                f" {taken[0]!r}: declare a metric once, or rename one of the two."
            )
        _check_third_party(family, self.third_party)

    def add(self, kind: Kind, name: str) -> None:
        """Record the names of a metric."""
        self.owners.update(dict.fromkeys(_exposed_names(kind, name), f"the {kind} {name!r}"))

    def reserve(self, kind: Kind, name: str) -> Callable[[], None]:
        """Record the names of a metric that is declared later; call the result just before that."""
        names = _exposed_names(kind, name)
        taken = sorted(names & self.owners.keys())
        if taken:
            raise MetricError(f"The {kind} {name!r} clashes with {self.owners[taken[0]]}: rename that one.")
        self.add(kind, name)

        def release() -> None:
            for one in names:
                self.owners.pop(one, None)

        return release


class _Probe:
    """A collector that is registered for a moment, to learn whether its names are free."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def describe(self) -> Iterable[Metric]:
        return [self._metric]

    def collect(self) -> Iterable[Metric]:
        return []


def _check_third_party(family: Family, third_party: CollectorRegistry) -> None:
    from prometheus_client import Metric  # noqa: PLC0415 - heavy, so on first use

    name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
    probe = _Probe(Metric(name, family.help, family.kind))
    try:
        third_party.register(probe)
    except ValueError as error:
        own = _exposed_names(family.kind, family.name)
        taken = ", ".join(map(repr, sorted(own.intersection(getattr(error, "duplicates", ())))))
        raise MetricError(
            f"The {family.kind} {family.name!r} clashes with {taken or error} in"
            " prometheus_client's registry: rename one of the two."
        ) from error
    third_party.unregister(probe)


def _exposed_names(kind: Kind, name: str) -> frozenset[str]:
    """Return every name that a metric has in an exposition: its family's and its samples'."""
    if kind == "counter":
        return frozenset((name, name.removesuffix("_total")))
    if kind == "histogram":
        return frozenset((name, *(name + suffix for suffix in _HISTOGRAM_SUFFIXES)))
    return frozenset((name,))

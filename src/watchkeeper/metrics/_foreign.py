"""What the service registered with `prometheus_client` itself, and its process, platform and gc defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._naming import exposed_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry, Metric

    from watchkeeper.metrics._instruments import Counter, Gauge, Histogram

_SUFFIXES: Final = {
    "counter": ("_total", "_created"),
    "summary": ("_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
    "info": ("_info",),
}


def default_registry() -> CollectorRegistry:
    """Return the registry that prometheus_client uses where none is named."""
    from prometheus_client import REGISTRY  # noqa: PLC0415 - heavy, so on first use

    return REGISTRY


class _Claim:
    """A collector that holds names for a moment, to learn whether they are free."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def describe(self) -> Iterable[Metric]:
        return [self._family]

    def collect(self) -> Iterable[Metric]:
        return []


def check_free(instrument: Counter | Gauge | Histogram, foreign: CollectorRegistry) -> None:
    """Refuse an instrument whose names something in `foreign` already exposes.

    Raises:
        MetricError: With the names on both sides.
    """
    claim = _Claim(family_of(instrument))
    try:
        foreign.register(claim)
    except ValueError as error:
        own = exposed_names(instrument.kind, instrument.name)
        taken = ", ".join(map(repr, sorted(own.intersection(getattr(error, "duplicates", ())))))
        raise MetricError(
            f"The {instrument.kind} {instrument.name!r} clashes with {taken or error} in"
            " prometheus_client's registry: rename one of the two."
        ) from error
    foreign.unregister(claim)


def family_of(instrument: Counter | Gauge | Histogram) -> Metric:
    """Return the instrument and its series as prometheus_client's writers take them."""
    from prometheus_client import Metric  # noqa: PLC0415 - heavy, so on first use

    name = instrument.name.removesuffix("_total") if instrument.kind == "counter" else instrument.name
    family = Metric(name, instrument.help, instrument.kind)
    for sample in instrument.samples():
        family.add_sample(*sample)
    return family


def collect_foreign(
    foreign: CollectorRegistry, own: dict[str, str], report: Callable[[MetricError], None]
) -> list[Metric]:
    """Return the families of `foreign` that can be exposed beside our own.

    Args:
        foreign: Where the service registers what it makes with prometheus_client.
        own: Every exposed name of ours, with the instrument that it belongs to.
        report: Called with what had to be left out: a clash, or a collector that failed (it hides those
            after it).
    """
    collected: list[Metric] = []
    try:
        collected.extend(foreign.collect())
    except Exception as error:  # noqa: BLE001 - somebody else's collector may raise anything
        failure = MetricError(f"A collector of prometheus_client's registry failed: {type(error).__name__}.")
        failure.__cause__ = error
        report(failure)
    families: list[Metric] = []
    for family in collected:
        clash = sorted(_names(family) & own.keys())
        if clash:
            report(
                MetricError(
                    f"The {family.type} {family.name!r} of prometheus_client's registry clashes with"
                    f" {own[clash[0]]} and is left out: rename one of the two."
                )
            )
        else:
            families.append(_without_created(family))
    return families


def _names(family: Metric) -> set[str]:
    return {family.name, *(family.name + suffix for suffix in _SUFFIXES.get(family.type, ()))}


def _without_created(family: Metric) -> Metric:
    """Leave `_created` out: Prometheus would store it as a series of its own."""
    created = family.name + "_created"
    if all(sample.name != created for sample in family.samples):
        return family
    from prometheus_client import Metric  # noqa: PLC0415 - heavy, so on first use

    copy = Metric(family.name, family.documentation, family.type, family.unit)
    copy.samples = [sample for sample in family.samples if sample.name != created]
    return copy

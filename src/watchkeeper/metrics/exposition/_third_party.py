"""What the service registered with `prometheus_client` itself, and its process, platform and gc defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._validation import WORKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import CollectorRegistry, Metric


_SUFFIXES: Final = {
    "counter": ("_total", "_created"),
    "summary": ("_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
    "info": ("_info",),
}


class ThirdPartyFamily(msgspec.Struct, array_like=True):
    """A family of prometheus_client's, in a form that travels between processes.

    Args:
        name: Without its suffixes.
        help: Its documentation.
        kind: As prometheus_client names types.
        unit: At the end of its name, or nothing.
        samples: Name, labels, value, and unix time where one was given.
    """

    name: str
    help: str
    kind: str
    unit: str
    samples: list[tuple[str, dict[str, str], float, float | None]]


class _Families:
    """Families in the shape that prometheus_client's writers ask for."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def collect_third_party(
    third_party: CollectorRegistry,
    own: dict[str, str],
    report: Callable[[MetricError], None],
    worker: str | None,
) -> list[ThirdPartyFamily]:
    """Return the families of `third_party` that can be exposed beside our own.

    Args:
        third_party: Where the service registers what it makes with prometheus_client.
        own: Every exposed name of ours, with the instrument that it belongs to.
        report: Called with what had to be left out: a clash, or a collector that failed (it hides those
            after it).
        worker: The number of this worker, as a label of every sample: what several workers count apart would
            else be shown in turn. None where it is the only one.
    """
    collected: list[Metric] = []
    try:
        collected.extend(third_party.collect())
    except Exception as error:  # noqa: BLE001 - somebody else's collector may raise anything
        failure = MetricError(f"A collector of prometheus_client's registry failed: {type(error).__name__}.")
        failure.__cause__ = error
        report(failure)
    families: list[ThirdPartyFamily] = []
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
            families.append(_packed(family, worker))
    return families


def write_third_party(families: Iterable[ThirdPartyFamily], *, openmetrics: bool) -> str:
    """Write the families of one worker or of several; those of one name come together."""
    from prometheus_client import Metric, exposition  # noqa: PLC0415 - heavy, so on first use
    from prometheus_client import openmetrics as open_format  # noqa: PLC0415 - the same

    merged: dict[str, Metric] = {}
    for family in families:
        metric = merged.get(family.name)
        if metric is None:
            metric = merged[family.name] = Metric(family.name, family.help, family.kind, family.unit)
        for name, labels, value, at in family.samples if metric.type == family.kind else ():
            metric.add_sample(name, labels, value, at)
    writer: Any = open_format.exposition if openmetrics else exposition  # one of the two has no types
    text: bytes = writer.generate_latest(_Families(merged.values()))
    return text.decode().removesuffix("# EOF\n")


def _packed(family: Metric, worker: str | None) -> ThirdPartyFamily:
    # Without when its series began: Prometheus would store that as a series of its own.
    created = family.name + "_created"
    return ThirdPartyFamily(
        family.name,
        family.documentation,
        family.type,
        family.unit,
        [
            (
                sample.name,
                _labelled(sample.labels, worker),
                float(sample.value),
                None if sample.timestamp is None else float(sample.timestamp),
            )
            for sample in family.samples
            if sample.name != created
        ],
    )


def _labelled(labels: Mapping[str, str], worker: str | None) -> dict[str, str]:
    if worker is None:
        return dict(labels)
    # A collector that has such a label of its own keeps it.
    name = f"watchkeeper_{WORKER}" if WORKER in labels else WORKER
    return {**labels, name: worker}


def _names(family: Metric) -> set[str]:
    return {family.name, *(family.name + suffix for suffix in _SUFFIXES.get(family.type, ()))}

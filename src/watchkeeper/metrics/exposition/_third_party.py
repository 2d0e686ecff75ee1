"""What the service registered with `prometheus_client`, and that library's metrics of the process."""

from __future__ import annotations

from types import SimpleNamespace
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
    """A metric of prometheus_client, in a form that can be sent to another process."""

    name: str
    help: str
    kind: str
    unit: str
    samples: list[tuple[str, dict[str, str], float, float | None]]


def collect_third_party(
    registry: CollectorRegistry,
    own: dict[str, str],
    report: Callable[[MetricError], None],
    worker: str | None,
) -> list[ThirdPartyFamily]:
    """Return the metrics of `registry` that can be exposed alongside `own` names; the others are reported.

    `worker` becomes a label of every sample, None if there is only one worker: without it, metrics that each
    worker counts by itself would jump between the workers' values.
    """
    collected: list[Metric] = []
    try:
        collected.extend(registry.collect())
    except Exception as error:  # noqa: BLE001 - a third party's collector may raise anything
        failure = MetricError(f"A collector of prometheus_client's registry failed: {type(error).__name__}.")
        failure.__cause__ = error
        report(failure)
    families: list[ThirdPartyFamily] = []
    for metric in collected:
        names = {metric.name, *(metric.name + suffix for suffix in _SUFFIXES.get(metric.type, ()))}
        clash = sorted(names & own.keys())
        if clash:
            report(
                MetricError(
                    f"The {metric.type} {metric.name!r} of prometheus_client's registry clashes with"
                    f" {own[clash[0]]} and is left out: rename one of the two."
                )
            )
        else:
            families.append(_pack(metric, worker))
    return families


def write_third_party(families: Iterable[ThirdPartyFamily], *, openmetrics: bool) -> str:
    """Return the lines of the metrics of all workers, grouped by name."""
    from prometheus_client import Metric, exposition  # noqa: PLC0415 - heavy, so on first use
    from prometheus_client import openmetrics as open_format  # noqa: PLC0415 - the same

    merged: dict[str, Metric] = {}
    for family in families:
        metric = merged.get(family.name)
        if metric is None:
            metric = merged[family.name] = Metric(family.name, family.help, family.kind, family.unit)
        for name, labels, value, timestamp in family.samples if metric.type == family.kind else ():
            metric.add_sample(name, labels, value, timestamp)
    writer: Any = open_format.exposition if openmetrics else exposition  # one of the two has no types
    text: bytes = writer.generate_latest(SimpleNamespace(collect=merged.values))
    return text.decode().removesuffix("# EOF\n")


def _pack(metric: Metric, worker: str | None) -> ThirdPartyFamily:
    # Without `_created`, which Prometheus would store as a separate series.
    created = metric.name + "_created"
    return ThirdPartyFamily(
        metric.name,
        metric.documentation,
        metric.type,
        metric.unit,
        [
            (
                sample.name,
                _add_worker(sample.labels, worker),
                float(sample.value),
                None if sample.timestamp is None else float(sample.timestamp),
            )
            for sample in metric.samples
            if sample.name != created
        ],
    )


def _add_worker(labels: Mapping[str, str], worker: str | None) -> dict[str, str]:
    if worker is None:
        return dict(labels)
    # A collector that already has such a label keeps it.
    name = f"watchkeeper_{WORKER}" if WORKER in labels else WORKER
    return {**labels, name: worker}

"""Real Prometheus stores the metrics of two workers with hostile labels exactly as they are exposed."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as ThirdPartyCounter

from support.metrics import ScrapedRegistry
from support.prometheus import Prometheus, exporting, running_prometheus, wait_until
from support.workers import samples_of

HOSTILE: Final = (
    *('a"b', "a\\", "\\n", "a\nb", "\r\n\t", "{}=,", "# EOF", " ", "", "%d%s%", "\x00", "\x7f\x85"),
    *("\u2028\u202e\ufeff", "\U0001f4a9", "\udc80", 'x"} 9e9\nforged_total{a="b', "a" * 1000, "' OR 1=1"),
)
TRACES: Final = ("a" * 32, "b" * 32)


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> list[ScrapedRegistry]:
    """Two workers of one instance; one of them has third-party metrics too."""
    folder = tmp_path_factory.mktemp("instance")
    third_party = CollectorRegistry()
    legacy = ThirdPartyCounter("legacy", "Legacy.", ["kind"], registry=third_party)
    workers = [ScrapedRegistry(folder, third_party=third_party), ScrapedRegistry(folder)]
    for registry, trace in zip(workers, TRACES, strict=True):
        jobs = registry.counter("jobs_total", 'Jobs, "quoted" \\ and\nbroken.', ("kind", "peer"))
        took = registry.histogram("took_seconds", "Time.", ("kind",), buckets=(0.1, 5, 2_500_000))
        level = registry.gauge("level", "Level.", ("kind",), multiprocess_mode="sum")
        each = registry.gauge("each", "Each.", ("kind",), multiprocess_mode="worker")
        for number, value in enumerate(HOSTILE):
            jobs.labels(kind=value, peer=HOSTILE[-number]).inc(number + 0.1, {"trace_id": trace})
            took.labels(kind=value).observe(number, {"trace_id": trace})
            level.labels(kind=value).set(-number)
            each.labels(kind=value).set(1e-9 * number)
    for value in HOSTILE[:-4]:
        legacy.labels(value).inc()
    return workers


@pytest.fixture(scope="module")
def prometheus(
    registries: list[ScrapedRegistry], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Run Prometheus with two jobs that scrape these workers, one for each format."""
    config = tmp_path_factory.mktemp("prometheus") / "prometheus.yml"
    with contextlib.ExitStack() as stack:
        exporters = {
            "openmetrics": stack.enter_context(exporting(registries[0], "token")),
            "text": stack.enter_context(exporting(registries[0], "token", text_only=True)),
        }
        jobs = [
            {
                "job_name": name,
                "authorization": {"credentials": "token"},
                "static_configs": [{"targets": [exporter.address], "labels": {"instance": ""}}],
            }
            for name, exporter in exporters.items()
        ]
        scrape = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        config.write_text(yaml.safe_dump({"global": scrape, "scrape_configs": jobs}))
        found = stack.enter_context(running_prometheus(config, "--enable-feature=exemplar-storage"))
        for name in exporters:
            wait_until(lambda name=name: name in str(found.query("jobs_total")), f"scrape of {name}")  # type: ignore[misc] # its default is a name
        yield found


@pytest.mark.parametrize("format_", ["text", "openmetrics"])
def test_prometheus_stores_exactly_what_was_exposed(
    format_: str, registries: list[ScrapedRegistry], prometheus: Prometheus
) -> None:
    """Every series has exactly its labels and value, and there is no other series."""
    openmetrics = format_ == "openmetrics"
    exposed = samples_of(registries[0].text(openmetrics=openmetrics), openmetrics=openmetrics)
    assert len(exposed) > 8 * len(HOSTILE)
    expected = {
        (name, frozenset((key, value) for key, value in labels if value)): number
        for (name, labels), number in exposed.items()
    }
    found = {}
    for labels, number in prometheus.query(f'{{job="{format_}"}}').items():
        has = dict(labels)
        del has["job"]
        has.pop("instance", None)
        found[has.pop("__name__"), frozenset(has.items())] = number
    own = {"up"} | {name for name, _ in found if name.startswith("scrape_")}
    assert {key: value for key, value in found.items() if key[0] not in own} == expected
    assert prometheus.query(f'up{{job="{format_}"}}').popitem()[1] == 1.0


def test_prometheus_stores_the_exemplars(prometheus: Prometheus) -> None:
    """Each counter and bucket has its exemplar with the trace id; the text format has none."""
    now = time.time()
    found = prometheus.get(
        "query_exemplars",
        query='{__name__=~"jobs_total|took_seconds_bucket"}',
        start=str(now - 600),
        end=str(now),
    )
    assert {one["seriesLabels"]["job"] for one in found} == {"openmetrics"}
    names = [one["seriesLabels"]["__name__"] for one in found]
    assert names.count("jobs_total") == names.count("took_seconds_bucket") == len(HOSTILE)
    assert {exemplar["labels"]["trace_id"] for one in found for exemplar in one["exemplars"]} <= set(TRACES)

import subprocess
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Summary
from prometheus_client import Counter as ThirdPartyCounter
from prometheus_client import Histogram as ThirdPartyHistogram
from prometheus_client.core import GaugeMetricFamily

from support.metrics import ScrapedRegistry
from support.tools import require_tool
from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._http import HttpMetrics
from watchkeeper.metrics.exposition._exposition import prefers_openmetrics

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html", TEXT),
        ("text/plain", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0", OPENMETRICS),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.5", OPENMETRICS),
        ("application/openmetrics-text;q=0.4,text/plain;q=0.5", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=x", TEXT),
        ("application/openmetrics-text;q=7", TEXT),
        ("application/openmetrics-text;version=2.0.0", TEXT),
        (";;;,=,q=,application/openmetrics-text;;", OPENMETRICS),
    ],
)
def test_the_format_is_what_the_scraper_prefers(accept: str, content_type: str) -> None:
    """A scraper that wants OpenMetrics 1 at least as much as text gets it; all others get text."""
    exposition = ScrapedRegistry().scrape(openmetrics=prefers_openmetrics(accept))
    assert exposition.content_type == content_type
    assert exposition.body.endswith(b"# EOF\n") == (content_type == OPENMETRICS)


@given(value=st.floats(allow_nan=False))
def test_every_value_is_read_back_exactly(value: float) -> None:
    """The text of a gauge reads as the same double."""
    registry = ScrapedRegistry()
    registry.gauge("level", "Level.").set(value)
    assert registry.sample("level") == value


def test_bucket_bounds_are_the_same_in_both_formats() -> None:
    """`le` is written as other Python libraries write it, so both formats give the same series."""
    registry = ScrapedRegistry()
    registry.histogram("time_ms", "Time.", buckets=(0.005, 10, 5000, 2_500_000))
    for openmetrics in (False, True):
        text = registry.text(openmetrics=openmetrics)
        bounds = [line.split('le="')[1].split('"')[0] for line in text.splitlines() if 'le="' in line]
        assert bounds == ["0.005", "10.0", "5000.0", "2.5e+06", "+Inf"]


def test_what_a_service_registers_with_prometheus_client_is_exposed() -> None:
    """Metrics of other libraries are exposed beside ours, without their `_created` series."""
    third_party = CollectorRegistry()
    registry = ScrapedRegistry(third_party=third_party)
    registry.counter("jobs_total", "Jobs.")
    ThirdPartyCounter("imports", "Imports.", registry=third_party).inc(3)
    ThirdPartyHistogram("import_seconds", "Time.", registry=third_party).observe(0.3)
    Summary("import_bytes", "Size.", registry=third_party).observe(7)
    for openmetrics in (False, True):
        text = registry.text(openmetrics=openmetrics)
        assert "\nimports_total 3.0\n" in text
        assert "\nimport_seconds_count 1.0\n" in text
        assert "\nimport_bytes_sum 7.0\n" in text
        assert "jobs_total 0.0\n" in text
        assert "_created" not in text


def test_the_metrics_of_the_process_are_exposed() -> None:
    """CPU, memory, open files, garbage collection and the Python version need no declaration."""
    text = ScrapedRegistry(third_party=None).text()
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert {
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "python_gc_collections_total",
        "python_info",
    } <= names


@pytest.mark.parametrize(
    ("declare", "names"),
    [
        (lambda r: r.counter("jobs_total", "Jobs."), ("counter 'jobs_total'", "counter 'jobs_total'")),
        (lambda r: r.gauge("jobs", "Jobs."), ("gauge 'jobs'", "counter 'jobs_total' over the name 'jobs'")),
        (lambda r: r.histogram("time", "Time.", buckets=(1,)), ("histogram 'time'", "gauge 'time'")),
    ],
)
def test_two_declarations_of_one_name_are_refused(declare: Any, names: tuple[str, str]) -> None:
    """The error names both metrics."""
    registry = ScrapedRegistry()
    registry.counter("jobs_total", "Jobs.")
    registry.gauge("time", "Time.")
    with pytest.raises(MetricError, match=" clashes with the ".join(names)):
        declare(registry)


def test_a_name_in_use_by_prometheus_client_is_refused() -> None:
    """So are the names of a third-party histogram's samples, and those of the process metrics."""
    third_party = CollectorRegistry()
    ThirdPartyHistogram("import_seconds", "Time.", registry=third_party)
    registry = ScrapedRegistry(third_party=third_party)
    with pytest.raises(
        MetricError, match=r"gauge 'import_seconds' clashes with 'import_seconds' in prometheus_client"
    ):
        registry.gauge("import_seconds", "Time.")
    with pytest.raises(MetricError, match="counter 'import_seconds_total' clashes with 'import_seconds'"):
        registry.counter("import_seconds_total", "Time.")
    with pytest.raises(MetricError, match="gauge 'process_open_fds' clashes with 'process_open_fds'"):
        ScrapedRegistry(third_party=None).gauge("process_open_fds", "Files.")
    registry.gauge("export_seconds", "Time.").set(1)
    assert b"export_seconds 1.0\n" in registry.scrape().body


def test_a_clash_that_appears_later_is_reported_once_and_left_out() -> None:
    """What the service registers after our declaration is not exposed; the scrape works."""
    third_party = CollectorRegistry()
    errors: list[MetricError] = []
    registry = ScrapedRegistry(third_party=third_party, on_error=errors.append)
    registry.counter("jobs_total", "Jobs.").inc(2)
    ThirdPartyCounter("jobs", "Other jobs.", registry=third_party).inc(9)
    ThirdPartyCounter("imports", "Imports.", registry=third_party)
    for _ in range(3):
        text = registry.text()
        assert "\njobs_total 2.0\n" in "\n" + text
        assert "9.0" not in text
        assert "imports_total 0.0" in text
    (error,) = errors
    assert str(error) == (
        "The counter 'jobs' of prometheus_client's registry clashes with the counter 'jobs_total'"
        " and is left out: rename one of the two."
    )


def test_a_clash_without_on_error_fails_the_scrape() -> None:
    """Without `on_error` the scrape raises."""
    third_party = CollectorRegistry()
    registry = ScrapedRegistry(third_party=third_party)
    registry.gauge("level", "Level.")
    ThirdPartyCounter("level", "Level.", registry=third_party)
    with pytest.raises(
        MetricError, match="counter 'level' of prometheus_client's registry clashes with the gauge 'level'"
    ):
        registry.scrape()


class _Broken:
    def collect(self) -> Iterable[Any]:
        yield GaugeMetricFamily("before", "Before.", value=1)
        raise ConnectionError("gone")


def test_a_third_party_collector_that_fails_is_left_out() -> None:
    """Our own metrics are exposed, and the failure is reported with its cause."""
    third_party = CollectorRegistry()
    third_party.register(_Broken())
    errors: list[MetricError] = []
    registry = ScrapedRegistry(third_party=third_party, on_error=errors.append)
    registry.counter("jobs_total", "Jobs.")
    text = registry.text()
    assert "jobs_total 0.0" in text
    assert "before 1.0" in text
    assert [str(error) for error in errors] == [
        "A collector of prometheus_client's registry failed: ConnectionError."
    ]
    assert isinstance(errors[0].__cause__, ConnectionError)


def _promtool(registry: ScrapedRegistry) -> list[str]:
    found = subprocess.run(
        [require_tool("promtool"), "check", "metrics"],
        input=registry.scrape().body,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=30,
    )
    return found.stdout.decode().splitlines()


@pytest.mark.parametrize(
    ("unit", "found"),
    [("s", []), ("ms", ["http_request_duration_ms metric names should not contain abbreviated units"])],
)
def test_promtool_finds_only_the_unit_of_milliseconds(unit: Any, found: list[str]) -> None:
    """The linter of Prometheus accepts every other name, type and help text, also those of the process."""
    registry = ScrapedRegistry(third_party=None)
    HttpMetrics(registry, unit=unit).record("GET", "/x", 200, 0.1)
    registry.gauge("level", "Level.").set(1)
    assert _promtool(registry) == found

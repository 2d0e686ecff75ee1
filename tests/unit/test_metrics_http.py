import pytest

from support.metrics import ScrapedRegistry
from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._http import HttpMetrics
from watchkeeper.metrics._websockets import WebsocketMetrics


@pytest.fixture
def registry() -> ScrapedRegistry:
    """A registry without third-party metrics."""
    return ScrapedRegistry()


def _bounds(registry: ScrapedRegistry) -> list[str]:
    text = registry.text()
    return [line.split('le="')[1].split('"')[0] for line in text.splitlines() if 'le="' in line]


def test_a_request_is_one_count_and_one_duration_in_seconds(registry: ScrapedRegistry) -> None:
    """The counter has method, route and status; the duration method and route."""
    metrics = HttpMetrics(registry)
    metrics.record("GET", "/a/{b}", 200, 0.25)
    metrics.record("GET", "/a/{b}", 404, 0.5)
    assert registry.sample("http_requests_total", method="GET", route="/a/{b}", status="200") == 1.0
    assert registry.sample("http_requests_total", method="GET", route="/a/{b}", status="404") == 1.0
    assert registry.sample("http_request_duration_seconds_sum", method="GET", route="/a/{b}") == 0.75
    assert registry.sample("http_request_duration_seconds_count", method="GET", route="/a/{b}") == 2.0
    assert _bounds(registry) == [
        "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "30.0", "60.0",
        "+Inf",
    ]  # fmt: skip


def test_the_duration_can_be_in_milliseconds(registry: ScrapedRegistry) -> None:
    """Its name and buckets have that unit; `record` still takes seconds."""
    metrics = HttpMetrics(registry, unit="ms")
    metrics.record("POST", "/a", 201, 0.25)
    assert registry.sample("http_request_duration_ms_sum", method="POST", route="/a") == 250.0
    assert _bounds(registry) == [
        "10.0", "50.0", "100.0", "200.0", "500.0", "1000.0", "2000.0", "5000.0", "10000.0", "30000.0",
        "60000.0", "+Inf",
    ]  # fmt: skip


def test_buckets_can_be_chosen(registry: ScrapedRegistry) -> None:
    """A service may have buckets of its own."""
    HttpMetrics(registry, buckets=(1, 2)).record("GET", "/", 200, 0.1)
    assert _bounds(registry) == ["1.0", "2.0", "+Inf"]


def test_the_unit_is_one_of_two(registry: ScrapedRegistry) -> None:
    """Anything else is refused."""
    with pytest.raises(MetricError, match="is 's' or 'ms', not 'min'"):
        HttpMetrics(registry, unit="min")  # type: ignore[arg-type]


def test_websocket_metrics_reserve_their_names(registry: ScrapedRegistry) -> None:
    """A clash is an error where the service declares, not in a connection."""
    websockets = WebsocketMetrics(registry)
    with pytest.raises(MetricError, match="clashes with the gauge 'websocket_connections_open'"):
        registry.gauge("websocket_connections_open", "Mine.")
    websockets.series("/ws").open.inc()
    websockets.record("/ws", "completed")
    assert registry.sample("websocket_connections_total", route="/ws", outcome="completed") == 1.0
    with pytest.raises(MetricError, match="clashes"):
        WebsocketMetrics(registry)

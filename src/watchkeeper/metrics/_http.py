"""The two metrics of HTTP requests: how many, and how long they took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._children import RequestChild

if TYPE_CHECKING:
    from collections.abc import Sequence

    from watchkeeper.metrics._children import CounterChild, HistogramChild
    from watchkeeper.metrics._registry import Registry

# RFC 9110 and RFC 5789; all other methods share one value, as in OpenTelemetry's conventions.
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
OTHER_METHOD: Final = "_OTHER"
RequestSeries: TypeAlias = "RequestChild | _Overflowing"

SECONDS_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
MILLISECONDS_BUCKETS: Final = (10.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 3e4, 6e4)


class HttpMetrics:
    """`http_requests_total`, and `http_request_duration_seconds` or, with the unit "ms", `…_duration_ms`."""

    def __init__(
        self, registry: Registry, *, unit: Literal["s", "ms"] = "s", buckets: Sequence[float] | None = None
    ) -> None:
        if unit not in {"s", "ms"}:
            raise MetricError(f"The unit of the duration is 's' or 'ms', not {unit!r}.")
        self.scale: float = 1.0 if unit == "s" else 1000.0
        name, default = (
            ("http_request_duration_seconds", SECONDS_BUCKETS)
            if unit == "s"
            else ("http_request_duration_ms", MILLISECONDS_BUCKETS)
        )
        self._requests = registry.counter(
            "http_requests_total",
            "HTTP requests answered, by method, route template and status.",
            ("method", "route", "status"),
        )
        self._durations = registry.histogram(
            name,
            "Time from the request to the last byte of its response's body.",
            ("method", "route"),
            buckets=default if buckets is None else buckets,
        )
        self._series: dict[tuple[str, str, int], RequestChild] = {}

    def record(self, method: str, route: str, status: int, duration: float, trace_id: str = "") -> None:
        """Count one request, with its duration in seconds; see `series`."""
        series = self.series(method, route, status)
        series.count()
        series.observe(duration * self.scale, trace_id)

    def series(self, method: str, route: str, status: int) -> RequestSeries:
        """Return what counts such requests, and observes their duration in seconds times `scale`."""
        try:
            return self._series[method, route, status]
        except KeyError:
            return self._create(method if method in METHODS else OTHER_METHOD, route, status)

    def _create(self, method: str, route: str, status: int) -> RequestSeries:
        counter = self._requests.labels(method=method, route=route, status=str(status))
        histogram = self._durations.labels(method=method, route=route)
        if not (self._requests.holds(counter) and self._durations.holds(histogram)):
            return _Overflowing(counter, histogram)
        series = self._series[method, route, status] = RequestChild(counter, histogram)
        return series


@dataclass(frozen=True)
class _Overflowing:
    """Used while one of the two metrics is at its cap: that one counts lost events, the other counts."""

    counter: CounterChild
    histogram: HistogramChild

    def count(self) -> None:
        self.counter.inc()

    def observe(self, value: float, trace_id: str) -> None:  # noqa: ARG002
        self.histogram.observe(value)

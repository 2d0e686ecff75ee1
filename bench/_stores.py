"""The same metrics in our registry and in prometheus_client's, as one of several workers."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from prometheus_client import CollectorRegistry

from bench._figure import OURS
from bench._workers import Worker
from watchkeeper.metrics import Registry
from watchkeeper.metrics._http import HttpMetrics
from watchkeeper.metrics.exposition._exporter import Exporter
from watchkeeper.metrics.shared._worker import Worker as MetricsWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BUCKETS: Final = (10.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
"""Those of the original service: with count and sum, a route has 12 lines."""

MULTIPROCESS: Final = "prometheus_client multiprocess"
PLAIN: Final = "prometheus_client in one process"


class Ours:
    """Our registry, as one worker of the instance in `folder`."""

    def __init__(self, folder: str) -> None:
        self._registry = Registry(third_party=CollectorRegistry())
        worker = MetricsWorker(self._registry)
        worker.join(Path(folder))
        self._exporter = Exporter(worker)
        self._http = HttpMetrics(self._registry, unit="ms", buckets=BUCKETS)
        self._events = self._registry.counter("events_total", "Events.", ("number",))
        self._sizes = self._registry.histogram("sizes_bytes", "Sizes.", ("kind",), buckets=BUCKETS)

    def record(self, route: str, milliseconds: float) -> None:
        """Count one request."""
        self._http.record("GET", route, 200, milliseconds / 1000)

    def counter(self, number: int) -> Any:
        """Return series `number` of a counter."""
        return self._events.labels(number=str(number))

    def histogram(self) -> Any:
        """Return a series of a histogram."""
        return self._sizes.labels(kind="all")

    def render(self) -> bytes:
        """Return all metrics of all workers, uncompressed."""
        # Chunk by chunk, as a scrape does it: one large string and its encoding cost 0.6 ms more.
        return b"".join(text.encode() for text in self._exporter.lines(openmetrics=False))


class PrometheusClient:
    """prometheus_client's registry; `folder` has the values of all workers, "" shares nothing."""

    def __init__(self, folder: str = "") -> None:
        from prometheus_client import Counter, Histogram

        self._folder = folder
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "http_requests", "Requests.", ("method", "route", "status"), registry=self._registry
        )
        self._durations = Histogram(
            "http_request_duration_ms",
            "Durations.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._events = Counter("events", "Events.", ("number",), registry=self._registry)
        self._sizes = Histogram("sizes_bytes", "Sizes.", ("kind",), buckets=BUCKETS, registry=self._registry)

    def record(self, route: str, milliseconds: float) -> None:
        """Count one request."""
        self._requests.labels("GET", route, "200").inc()
        self._durations.labels("GET", route).observe(milliseconds)

    def counter(self, number: int) -> Any:
        """Return series `number` of a counter."""
        return self._events.labels(str(number))

    def histogram(self) -> Any:
        """Return a series of a histogram."""
        return self._sizes.labels("all")

    def render(self) -> bytes:
        """Return all metrics of all workers, uncompressed, as its documentation recommends."""
        from prometheus_client import generate_latest, multiprocess

        if not self._folder:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=self._folder)  # type: ignore[no-untyped-call] # it has no types
        return generate_latest(registry)


Store: TypeAlias = Ours | PrometheusClient


def open_store(kind: str, folder: str) -> Store:
    """Return a worker's store by its name in the report."""
    if kind == OURS:
        return Ours(folder)
    return PrometheusClient("" if kind == PLAIN else folder)


@contextlib.contextmanager
def store_workers(
    kinds: Sequence[str], function: Callable[..., Any], count: int, *arguments: object
) -> Iterator[dict[str, list[Worker]]]:
    """Run `count` workers for each kind of store until the block ends; workers of a kind share a folder.

    Args:
        kinds: Names of stores.
        function: Sets a worker up, given the kind, its folder and `arguments`.
        count: How many workers each kind has.
        arguments: For `function`.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, contextlib.ExitStack() as stack:
        started: dict[str, list[Worker]] = {}
        for kind in kinds:
            folder = Path(scratch) / str(len(started))
            folder.mkdir()
            environ = {"PROMETHEUS_MULTIPROC_DIR": str(folder)} if kind == MULTIPROCESS else {}
            started[kind] = []
            for _ in range(count):
                worker = Worker.of(function, kind, str(folder), *arguments, environ=environ)
                stack.callback(worker.close)
                started[kind].append(worker)
        yield started

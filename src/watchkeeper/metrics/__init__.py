"""Counters, gauges and histograms, and their exposition for Prometheus."""

from __future__ import annotations

from watchkeeper.metrics._children import CounterChild, GaugeChild, HistogramChild, Timer
from watchkeeper.metrics._http import HttpMetrics, RequestSeries
from watchkeeper.metrics._instruments import Counter, Gauge, Histogram
from watchkeeper.metrics._registry import Registry
from watchkeeper.metrics._websockets import WebsocketMetrics, WebsocketSeries
from watchkeeper.metrics.exposition._exposition import Exposition, accepts_gzip, prefers_openmetrics
from watchkeeper.metrics.shared._instance import Instance
from watchkeeper.metrics.shared._workers import Workers

__all__ = [
    "Counter",
    "CounterChild",
    "Exposition",
    "Gauge",
    "GaugeChild",
    "Histogram",
    "HistogramChild",
    "HttpMetrics",
    "Instance",
    "Registry",
    "RequestSeries",
    "Timer",
    "WebsocketMetrics",
    "WebsocketSeries",
    "Workers",
    "accepts_gzip",
    "prefers_openmetrics",
]

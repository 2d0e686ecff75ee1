"""Counters, gauges and histograms, and their exposition for Prometheus."""

from __future__ import annotations

from watchkeeper.metrics._bound import BoundCounter, BoundGauge, BoundHistogram, Timer
from watchkeeper.metrics._exposition import Exposition
from watchkeeper.metrics._http import HttpMetrics
from watchkeeper.metrics._instruments import Counter, Gauge, Histogram
from watchkeeper.metrics._registry import Registry
from watchkeeper.metrics._websockets import WebsocketMetrics, WebsocketSeries

__all__ = [
    "BoundCounter",
    "BoundGauge",
    "BoundHistogram",
    "Counter",
    "Exposition",
    "Gauge",
    "Histogram",
    "HttpMetrics",
    "Registry",
    "Timer",
    "WebsocketMetrics",
    "WebsocketSeries",
]

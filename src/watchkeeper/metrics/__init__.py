"""Counters, gauges and histograms, and their exposition for Prometheus."""

from watchkeeper.metrics._children import Timer
from watchkeeper.metrics._instruments import Counter, Gauge, Histogram
from watchkeeper.metrics._registry import Registry

__all__ = ["Counter", "Gauge", "Histogram", "Registry", "Timer"]

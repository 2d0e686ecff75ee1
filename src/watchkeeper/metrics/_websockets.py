"""The metrics of websockets: connections by their end, messages by their direction, and how many are open."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from watchkeeper.metrics._children import CounterChild, GaugeChild
    from watchkeeper.metrics._instruments import Counter, Gauge
    from watchkeeper.metrics._registry import Registry

OUTCOMES: Final = ("completed", "rejected", "failed", "aborted", "cancelled")


class WebsocketSeries(NamedTuple):
    """The series of one route that an open connection holds on to."""

    open: GaugeChild
    received: CounterChild
    sent: CounterChild


class WebsocketMetrics:
    """Counts the websocket connections of one service and their messages.

    Args:
        registry: Where the three are declared, with the first connection: most services have none.

    Raises:
        MetricError: One of their names is taken.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._free_connections = registry.reserve("counter", "websocket_connections_total")
        self._free_messages = registry.reserve("counter", "websocket_messages_total")
        self._free_open = registry.reserve("gauge", "websocket_connections_open")

    @cached_property
    def _connections(self) -> Counter:
        self._free_connections()
        return self._registry.counter(
            "websocket_connections_total",
            "Websocket connections that ended, by route template and how.",
            ("route", "outcome"),
        )

    @cached_property
    def _messages(self) -> Counter:
        self._free_messages()
        return self._registry.counter(
            "websocket_messages_total",
            "Websocket messages, by route template and direction.",
            ("route", "direction"),
        )

    @cached_property
    def _open(self) -> Gauge:
        self._free_open()
        return self._registry.gauge(
            "websocket_connections_open",
            "Websocket connections that are open now.",
            ("route",),
            multiprocess_mode="sum",
        )

    def series(self, route: str) -> WebsocketSeries:
        """Return what a connection of this route counts with while it is open.

        Args:
            route: Template of the route, never a raw path.
        """
        return WebsocketSeries(
            self._open.labels(route=route),
            self._messages.labels(route=route, direction="received"),
            self._messages.labels(route=route, direction="sent"),
        )

    def record(self, route: str, outcome: str) -> None:
        """Count one connection that ended.

        Args:
            route: Template of the route, never a raw path.
            outcome: One of `OUTCOMES`.
        """
        self._connections.labels(route=route, outcome=outcome).inc()

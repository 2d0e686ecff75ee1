"""The metrics of websockets: ended connections by outcome, messages by direction, open connections."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from watchkeeper.metrics._children import CounterChild, GaugeChild
    from watchkeeper.metrics._instruments import Counter, Gauge
    from watchkeeper.metrics._registry import Registry


class WebsocketSeries(NamedTuple):
    """The series of one route that an open connection counts with."""

    open: GaugeChild
    received: CounterChild
    sent: CounterChild


class WebsocketMetrics:
    """Counts the websocket connections of one service and their messages.

    Most services have no websockets, so the three metrics are declared at the first connection. Their names
    are reserved before: a clash raises MetricError where the service declares, not in a connection.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._release_connections = registry.reserve("counter", "websocket_connections_total")
        self._release_messages = registry.reserve("counter", "websocket_messages_total")
        self._release_open = registry.reserve("gauge", "websocket_connections_open")

    @cached_property
    def _connections(self) -> Counter:
        self._release_connections()
        return self._registry.counter(
            "websocket_connections_total",
            "Websocket connections that ended, by route template and how.",
            ("route", "outcome"),
        )

    @cached_property
    def _messages(self) -> Counter:
        self._release_messages()
        return self._registry.counter(
            "websocket_messages_total",
            "Websocket messages, by route template and direction.",
            ("route", "direction"),
        )

    @cached_property
    def _open(self) -> Gauge:
        self._release_open()
        return self._registry.gauge(
            "websocket_connections_open",
            "Websocket connections that are open now.",
            ("route",),
            multiprocess_mode="sum",
        )

    def series(self, route: str) -> WebsocketSeries:
        """Return what a connection of this route (a template) counts with while it is open."""
        return WebsocketSeries(
            self._open.labels(route=route),
            self._messages.labels(route=route, direction="received"),
            self._messages.labels(route=route, direction="sent"),
        )

    def record(self, route: str, outcome: str) -> None:
        """Count one ended connection: `completed`, `rejected`, `failed`, `aborted` or `cancelled`."""
        self._connections.labels(route=route, outcome=outcome).inc()

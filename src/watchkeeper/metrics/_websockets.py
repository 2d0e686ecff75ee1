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

    The metrics are declared at the first connection, which most services never see. Their names are reserved
    before, so that a clash raises MetricError at the start and not in a connection.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._releases = (
            registry.reserve("counter", "websocket_connections_total"),
            registry.reserve("counter", "websocket_messages_total"),
            registry.reserve("gauge", "websocket_connections_open"),
        )

    def series(self, route: str) -> WebsocketSeries:
        """Return what a connection of this route (a template) counts with while it is open."""
        _, messages, open_ = self._declared
        return WebsocketSeries(
            open_.labels(route=route),
            messages.labels(route=route, direction="received"),
            messages.labels(route=route, direction="sent"),
        )

    def record(self, route: str, outcome: str) -> None:
        """Count one ended connection: `completed`, `rejected`, `failed`, `aborted` or `cancelled`."""
        self._declared[0].labels(route=route, outcome=outcome).inc()

    @cached_property
    def _declared(self) -> tuple[Counter, Counter, Gauge]:
        for release in self._releases:
            release()
        return (
            self._registry.counter(
                "websocket_connections_total",
                "Websocket connections that ended, by route template and how.",
                ("route", "outcome"),
            ),
            self._registry.counter(
                "websocket_messages_total",
                "Websocket messages, by route template and direction.",
                ("route", "direction"),
            ),
            self._registry.gauge(
                "websocket_connections_open",
                "Websocket connections that are open now.",
                ("route",),
                multiprocess_mode="sum",
            ),
        )

"""What stands in for a child that cannot be created: it counts the events that are lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchkeeper.metrics._children import CounterChild, GaugeChild, HistogramChild

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Subclasses that skip Child.__init__: they have no cells. ARG002: the signatures are the children's.


class LostCounter(CounterChild):
    """Counts each event as lost."""

    __slots__ = ("_count_lost",)

    def __init__(self, count_lost: Callable[[], None]) -> None:
        self._count_lost = count_lost

    def inc(self, amount: float = 1.0, exemplar: Mapping[str, str] | None = None) -> None:  # noqa: ARG002
        """Count one lost event."""
        self._count_lost()


class LostGauge(GaugeChild):
    """Counts each value as lost."""

    __slots__ = ("_count_lost",)

    def __init__(self, count_lost: Callable[[], None]) -> None:
        self._count_lost = count_lost

    def set(self, value: float) -> None:  # noqa: ARG002
        """Count one lost value."""
        self._count_lost()

    def inc(self, amount: float = 1.0) -> None:  # noqa: ARG002
        """Count one lost step."""
        self._count_lost()

    def clear(self) -> None:
        """Do nothing."""


class LostHistogram(HistogramChild):
    """Counts each observation as lost."""

    __slots__ = ("_count_lost",)

    def __init__(self, count_lost: Callable[[], None]) -> None:
        self._count_lost = count_lost

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:  # noqa: ARG002
        """Count one lost observation."""
        self._count_lost()

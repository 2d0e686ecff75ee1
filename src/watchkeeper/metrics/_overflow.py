"""What stands in for a series that may not be made: it counts that something was not counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchkeeper.metrics._children import CounterChild, GaugeChild, HistogramChild

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class LostCounter(CounterChild):
    """Counts an event as lost."""

    __slots__ = ("_lose",)

    def __init__(self, lose: Callable[[], None]) -> None:
        self._lose = lose

    def inc(self, amount: float = 1.0, exemplar: Mapping[str, str] | None = None) -> None:  # noqa: ARG002
        """Count one event that was not counted."""
        self._lose()


class LostGauge(GaugeChild):
    """Counts a value as lost."""

    __slots__ = ("_lose",)

    def __init__(self, lose: Callable[[], None]) -> None:
        self._lose = lose

    def set(self, value: float) -> None:  # noqa: ARG002
        """Count one value that was not shown."""
        self._lose()

    def inc(self, amount: float = 1.0) -> None:  # noqa: ARG002
        """Count one step that was not shown."""
        self._lose()

    def clear(self) -> None:
        """Do nothing: there is nothing to clear."""


class LostHistogram(HistogramChild):
    """Counts an observation as lost."""

    __slots__ = ("_lose",)

    def __init__(self, lose: Callable[[], None]) -> None:
        self._lose = lose

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:  # noqa: ARG002
        """Count one observation that was not counted."""
        self._lose()

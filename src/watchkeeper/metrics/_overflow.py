"""What stands in for a child that cannot be created: each call counts one lost event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from watchkeeper.metrics._children import HistogramChild, Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class LostChild:
    """Has the methods of all three kinds of children; callers cast it to the kind they need."""

    __slots__ = ("_count_lost",)

    def __init__(self, count_lost: Callable[[], None]) -> None:
        self._count_lost = count_lost

    def inc(self, _amount: float = 1.0, exemplar: Mapping[str, str] | None = None) -> None:  # noqa: ARG002
        """Count one lost event."""
        self._count_lost()

    set = dec = observe = inc

    def time(self, unit: Literal["s", "ms"] = "s") -> Timer:
        """Return a timer whose observation is one lost event."""
        return Timer(cast("HistogramChild", self), unit)

    def clear(self) -> None:
        """Do nothing."""

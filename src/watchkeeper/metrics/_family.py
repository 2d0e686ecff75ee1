"""What a metric is and where its series are stored: what all workers agree on to sum their values."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

from msgspec import Struct

Kind = Literal["counter", "gauge", "histogram"]
MultiprocessMode = Literal["latest", "sum", "max", "min", "worker"]

MULTIPROCESS_MODES: Final[tuple[MultiprocessMode, ...]] = get_args(MultiprocessMode)


class Family(Struct, frozen=True):
    """One metric, as it is declared; `bounds` are the finite ones of a histogram's buckets."""

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    multiprocess_mode: MultiprocessMode = "latest"

    @property
    def shape(self) -> tuple[object, ...]:
        """What other processes must declare alike for their series to be summed: all but the help."""
        return self.kind, self.name, self.labels, self.bounds, self.multiprocess_mode

    @property
    def width(self) -> int:
        """Cells of one series: a counter's value; a gauge's value and stamp; buckets, one above all, sum."""
        return {"counter": 1, "gauge": 2, "histogram": len(self.bounds) + 2}[self.kind]


class Series(NamedTuple):
    """One label set of a family, its first cell, and when it was created (a unix time)."""

    family: Family
    labels: tuple[str, ...]
    first: int
    created: float

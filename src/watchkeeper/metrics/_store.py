"""Where the values of all series are: cells of doubles, in this process or in its slot of shared memory.

A writer does `values[index] += amount` and calls nothing between load and store, nor between these and
fetching values and index: under the GIL no other thread runs in between, so no update is lost. Without a GIL,
`lock` is held. Only this process writes to its slot, so processes need no lock between them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from watchkeeper.metrics._family import Series

if TYPE_CHECKING:
    from watchkeeper.metrics._family import Family

# sys._is_gil_enabled is the documented way to ask (Python 3.13 and later).
_FREE_THREADED: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()


MAX_EXEMPLARS: Final = 4096
"""Exemplars that a worker keeps: they are sent to a scraped worker in one piece, which takes 1 or 2 ms."""

Cells: TypeAlias = "array[float] | memoryview[float]"


class Exemplar(NamedTuple):
    """One event that stands for those counted in a cell: identifying labels, value and unix time."""

    labels: dict[str, str]
    value: float
    timestamp: float


class Memory(Protocol):
    """What holds the cells of series."""

    @property
    def values(self) -> Cells:
        """The cells."""

    @property
    def series(self) -> list[Series]:
        """All series, in the order of their cells."""

    def place(self, family: Family, labels: tuple[str, ...]) -> int:
        """Return the first cell of a series, created at 0 if it is new."""

    def count(self, family: Family) -> int:
        """Return how many series of a family have cells, including those of earlier workers."""

    def has(self, family: Family, labels: tuple[str, ...]) -> bool:
        """Return whether an earlier worker left this series, so that it takes no more room."""

    def read(self) -> bytes:
        """Return all cells in use, as they are now."""


class LocalMemory:
    """Cells that only this process reads."""

    def __init__(self) -> None:
        self.values: array[float] = array("d")
        self.series: list[Series] = []
        self._counts: Counter[tuple[object, ...]] = Counter()

    def count(self, family: Family) -> int:
        """Return how many series of a family have cells."""
        return self._counts[family.shape]

    def has(self, _family: Family, _labels: tuple[str, ...]) -> bool:
        """Return False: there was no earlier worker."""
        return False

    def place(self, family: Family, labels: tuple[str, ...]) -> int:
        """Return the first cell of a new series."""
        self._counts[family.shape] += 1
        first = len(self.values)
        self.values.extend([0.0] * family.width)
        self.series.append(Series(family, labels, first, time.time()))
        return first

    def read(self) -> bytes:
        """Return all cells, as they are now."""
        return self.values.tobytes()


class Store:
    """What the instruments of one registry count in; its memory can be replaced while they count."""

    __slots__ = ("exemplars", "growth", "lock", "memory")

    def __init__(self) -> None:
        self.memory: Memory = LocalMemory()
        self.exemplars: dict[int, Exemplar] = {}
        """The last exemplar of each cell that has one, oldest first; only `keep_exemplar` changes it."""
        self.lock: threading.Lock | None = threading.Lock() if _FREE_THREADED else None
        """Held during each update on an interpreter without a GIL."""
        self.growth: threading.RLock = threading.RLock()  # held while series are created or moved

    def keep_exemplar(self, cell: int, exemplar: Exemplar) -> None:
        """Keep the last exemplar of a cell; beyond `MAX_EXEMPLARS` the oldest one is dropped."""
        self.exemplars.pop(cell, None)
        self.exemplars[cell] = exemplar
        if len(self.exemplars) > MAX_EXEMPLARS:
            # If another thread drops one at the same time, there is one more for a while.
            with contextlib.suppress(RuntimeError, KeyError, StopIteration):
                del self.exemplars[next(iter(self.exemplars))]

    def reset_after_fork(self) -> None:
        """Drop, in a forked child, what belongs to the parent: its exemplars, and a lock that it may hold."""
        self.growth = threading.RLock()
        self.exemplars = {}

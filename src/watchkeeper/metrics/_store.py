"""Where the values of all series live: cells of doubles by index, in this process or in its slot.

A writer does `values[index] += amount` with nothing called between load and store, nor between that and
taking memory and index: under the GIL no other thread runs in between, and no update is lost. Where there is
no GIL, `lock` is held around it. No other process writes to a slot, so that nothing is locked between them.
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
"""What a worker keeps: they go over to whoever is scraped in one piece, of a millisecond or two."""

Cells: TypeAlias = "array[float] | memoryview[float]"


class Exemplar(NamedTuple):
    """One event that stands for those counted in a cell.

    Args:
        labels: What it is found by, such as its trace id.
        value: What was counted or observed.
        at: When, as a unix time.
    """

    labels: dict[str, str]
    value: float
    at: float


class Memory(Protocol):
    """Where series have their cells."""

    @property
    def values(self) -> Cells:
        """The cells."""

    @property
    def series(self) -> list[Series]:
        """All series, in the order of their cells."""

    def place(self, family: Family, labels: tuple[str, ...]) -> int:
        """Return the first cell of a series, made at 0 if it is new."""

    def count(self, family: Family) -> int:
        """Return how many series of a family have cells, whoever made them."""

    def has(self, family: Family, labels: tuple[str, ...]) -> bool:
        """Say whether a predecessor has left a series, which takes no more room."""

    def read(self) -> bytes:
        """Return all cells in use, as they are now."""


class LocalMemory:
    """Cells of this process alone, which nobody else reads."""

    def __init__(self) -> None:
        self.values: array[float] = array("d")
        self.series: list[Series] = []
        self._counts: Counter[tuple[object, ...]] = Counter()

    def count(self, family: Family) -> int:
        """Return how many series of a family have cells."""
        return self._counts[family.shape]

    def has(self, _family: Family, _labels: tuple[str, ...]) -> bool:
        """Say that nobody was here before."""
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
    """The memory that instruments count in, which can be changed under them.

    Args:
        locked: Guard each update by a lock; default: only on an interpreter without GIL.
    """

    __slots__ = ("exemplars", "growth", "lock", "memory")

    def __init__(self, *, locked: bool = _FREE_THREADED) -> None:
        self.memory: Memory = LocalMemory()
        self.exemplars: dict[int, Exemplar] = {}
        """The last exemplar of each cell that has one, the oldest first; changed by `keep` alone."""
        self.lock: threading.Lock | None = threading.Lock() if locked else None
        self.growth: threading.RLock = threading.RLock()
        """Held while series are made or moved."""

    def keep_exemplar(self, cell: int, exemplar: Exemplar) -> None:
        """Keep the last exemplar of a cell; beyond `MAX_EXEMPLARS` the oldest one is dropped."""
        self.exemplars.pop(cell, None)
        self.exemplars[cell] = exemplar
        if len(self.exemplars) > MAX_EXEMPLARS:
            # If another thread drops one at the same time, there is one more for a while.
            with contextlib.suppress(RuntimeError, KeyError, StopIteration):
                del self.exemplars[next(iter(self.exemplars))]

    def reset_after_fork(self) -> None:
        """Forget, in a forked child, what belongs to the parent: its exemplars and a lock it may hold."""
        self.growth = threading.RLock()
        self.exemplars = {}

"""Where the values of all series live: one array of doubles, one index for each value.

Everything above it (instruments, exposition) knows only `values`, `lock` and indices, so that another store,
such as one in shared memory, can take its place.
"""

from __future__ import annotations

import sys
import threading
from array import array
from typing import Final

# sys._is_gil_enabled is the documented way to ask (Python 3.13 and later).
_FREE_THREADED: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()


class Store:
    """Doubles by index, never freed: a series keeps its place for as long as the process lives.

    A writer does `store.values[index] += amount` with nothing called between load and store: under the GIL no
    other thread runs in between, and no update is lost. Where there is no GIL, `lock` is held around it.

    Args:
        locked: Guard each update by a lock; default: only on an interpreter without GIL.
    """

    __slots__ = ("_growth", "lock", "values")

    def __init__(self, *, locked: bool = _FREE_THREADED) -> None:
        self.values: array[float] = array("d")
        self.lock: threading.Lock | None = threading.Lock() if locked else None
        self._growth = self.lock or threading.Lock()

    def allocate(self, count: int) -> int:
        """Add `count` values of 0 beside each other and return the index of the first."""
        with self._growth:
            first = len(self.values)
            self.values.extend([0.0] * count)
        return first

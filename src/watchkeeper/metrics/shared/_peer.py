"""Another worker's slot, as a scrape reads it.

It is read through a descriptor and not mapped: a page that somebody cut off, or that a full file system has
no room for, would be a SIGBUS.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics.shared._keys import LARGEST, KeyReader
from watchkeeper.metrics.shared._slot import CELL, HEADER, USED, is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from watchkeeper.metrics._family import Series

_RECORDS_AT_ONCE: Final = 256
_BYTES_AT_ONCE: Final = 2 * LARGEST  # a whole record at least


class Peer:
    """The slot of another worker, which runs or is dead.

    Args:
        folder: Of the instance.
        number: Of the slot.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self._values_path = folder / f"{number}.values"
        self._keys_path = folder / f"{number}.keys"
        self._keys = KeyReader()
        self._file = os.open(self._values_path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    @property
    def series(self) -> list[Series]:
        """Its series as far as they were read; it only grows."""
        return self._keys.series

    def read(self) -> bytes:
        """Return all cells of its series, header included, as they are now."""
        size = max(self._keys.cells, HEADER) * CELL
        return os.pread(self._file, size, 0).ljust(size, b"\0")

    def is_replaced(self) -> bool:
        """Say whether it was set aside and begun anew.

        Raises:
            OSError: It is not there.
        """
        # The descriptor keeps the old file, so that its number is not given to another.
        return not os.path.samestat(self._values_path.stat(), os.fstat(self._file))

    def refresh(self) -> Iterator[str]:
        """Read the series that came since the last time, in steps.

        Raises:
            MetricError: It is damaged.
            OSError: It cannot be read.
        """
        used = memoryview(self.read()).cast("d")[USED]
        with self._keys_path.open("rb") as file:
            before = -1
            while before < self._keys.read:
                before = self._keys.read
                file.seek(before)
                self._keys.feed(file.read(_BYTES_AT_ONCE), _RECORDS_AT_ONCE)
                yield ""
        if max(self._keys.cells, HEADER) < used:
            raise MetricError(f"The keys of worker {self.number} are cut off.")
        if self._keys.series and os.fstat(self._file).st_size < self._keys.cells * CELL:
            raise MetricError(f"The values of worker {self.number} are cut off.")


def numbers_in(folder: Path) -> list[int]:
    """Return the numbers of the slots that are there, in order.

    Raises:
        OSError: The folder is gone.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name, _, kind = entry.name.partition(".")
            if kind == "values" and name.isdecimal():
                found.append(int(name))
    return sorted(found)


def running_in(folder: Path) -> frozenset[int]:
    """Return the numbers of the workers that run now."""
    running = set()
    try:
        for number in numbers_in(folder):
            if is_alive(memoryview(Peer(folder, number).read()).cast("d")):
                running.add(number)
    except OSError:
        pass  # what is not there does not run
    return frozenset(running)

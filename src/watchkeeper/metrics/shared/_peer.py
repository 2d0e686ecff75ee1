"""Another worker's slot, as a scrape reads it.

It is not mapped: reading a page that was cut off, or that has no room, raises SIGBUS.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics.shared._keys import MAX_RECORD, KeyReader
from watchkeeper.metrics.shared._slot import CELL, HEADER, USED, is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from watchkeeper.metrics._family import Series

_RECORDS_PER_STEP: Final = 256
_BYTES_PER_STEP: Final = 2 * MAX_RECORD  # at least one whole record


class Peer:
    """The slot of another worker, running or not; OSError if it cannot be opened."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self._values_path = folder / f"{number}.values"
        self._keys_path = folder / f"{number}.keys"
        self._keys = KeyReader()
        self._file = os.open(self._values_path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    @property
    def series(self) -> list[Series]:
        """Its series, as far as they were read; the list only grows."""
        return self._keys.series

    def read(self) -> bytes:
        """Return the header and all cells of its series, as they are now."""
        size = max(self._keys.cells, HEADER) * CELL
        return os.pread(self._file, size, 0).ljust(size, b"\0")

    def is_replaced(self) -> bool:
        """Return whether its files were set aside and created again; OSError if they are missing."""
        # The open descriptor keeps the old file, so the new one cannot have the same inode number.
        return not os.path.samestat(self._values_path.stat(), os.fstat(self._file))

    def refresh(self) -> Iterator[str]:
        """Read the series that are new since the last call, in steps."""
        used = memoryview(self.read()).cast("d")[USED]
        with self._keys_path.open("rb") as file:
            before = -1
            while before < self._keys.size:
                before = self._keys.size
                file.seek(before)
                self._keys.feed(file.read(_BYTES_PER_STEP), _RECORDS_PER_STEP)
                yield ""
        if max(self._keys.cells, HEADER) < used:
            raise MetricError(f"The keys of worker {self.number} are cut off.")
        if self._keys.series and os.fstat(self._file).st_size < self._keys.cells * CELL:
            raise MetricError(f"The values of worker {self.number} are cut off.")


def slot_numbers(folder: Path) -> list[int]:
    """Return the numbers of the slots in an instance's folder, sorted; OSError if it is missing."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name, _, kind = entry.name.partition(".")
            if kind == "values" and name.isdecimal():
                found.append(int(name))
    return sorted(found)


def running_workers(folder: Path) -> frozenset[int]:
    """Return the numbers of the workers of an instance that are running."""
    running = set()
    try:
        for number in slot_numbers(folder):
            if is_alive(memoryview(Peer(folder, number).read()).cast("d")):
                running.add(number)
    except OSError:
        pass  # a slot that is missing has no running worker
    return frozenset(running)

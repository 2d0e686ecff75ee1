"""A slot: the values of one worker, in files that outlive it.

Three files: `N.values`, doubles by index, mapped by its one writer and by those who read; `N.keys`, which
series lie where; `N.lock`, held by the writer while it lives (flock: it goes with the process, however that
ends). Whoever finds a free lock adopts the slot with all that was counted in it: nothing is lost, nothing is
moved, and nobody has to tell a dead worker's figures from those of its successor.

The values file has its full size from the start and is sparse; what is used is allocated before (a mapped
page that the file system has no room for is a SIGBUS).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._family import Series
from watchkeeper.metrics._keys import KeyReader, KeyWriter
from watchkeeper.metrics._processes import is_running, start_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from watchkeeper.metrics._family import Family

HEADER: Final = 8
"""Cells before the first series: the mark, the writer's pid, its start time, and room for more."""

_MARK: Final = 6.02214076e23  # no other file begins like this, nor does one of another byte order
_PID: Final = 1
_START: Final = 2
_CELL: Final = 8
_CELLS: Final = 1 << 24  # 128 MiB of address space: a million histograms
_STEP: Final = 64 * 1024
_SLOTS: Final = 1024


class Slot:
    """The slot that this process writes to.

    Args:
        folder: Of the instance.
        number: Of the slot, which is the worker's label.
        lock: Descriptor of the lock, held.
        on_error: Told when what was there cannot be used and is set aside.
    """

    def __init__(self, folder: Path, number: int, lock: int, on_error: Callable[[MetricError], None]) -> None:
        self.number = number
        self._lock = lock
        self._values_path = folder / f"{number}.values"
        self._keys_path = folder / f"{number}.keys"
        keys = self._read(on_error)
        self.series = keys.series
        self._writer = KeyWriter(keys.families)
        self._adopted = {(one.family.shape, one.labels): one.first for one in keys.series}
        self._used = max(keys.cells, HEADER)
        self._reserved = 0
        self._told = keys.read
        self._keys = os.open(self._keys_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._file = os.open(self._values_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.truncate(self._keys, keys.read)  # a record that a kill cut off
        os.truncate(self._file, _CELLS * _CELL)
        self._reserve(self._used)
        self.values = memoryview(mmap.mmap(self._file, _CELLS * _CELL)).cast("d")
        self._take_over()

    @classmethod
    def claim(cls, folder: Path, on_error: Callable[[MetricError], None]) -> Slot:
        """Adopt the first slot whose writer is gone, or make a new one.

        Args:
            folder: Of the instance; it exists.
            on_error: Told of a damaged slot, which is set aside.

        Raises:
            OSError: There is no room, or the folder is not usable.
            MetricError: There are too many workers.
        """
        for number in range(_SLOTS):
            path = folder / f"{number}.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return cls(folder, number, lock, on_error)
            except BlockingIOError:
                os.close(lock)
            except BaseException:
                os.close(lock)
                raise
        raise MetricError(f"There are {_SLOTS} workers in {folder} already.")

    def place(self, family: Family, labels: tuple[str, ...]) -> int:
        """Return the first cell of a series: the one that a predecessor counted in, or a new one, at 0.

        Raises:
            OSError: There is no room.
        """
        first = self._adopted.get((family.shape, labels))
        if first is not None:
            return first
        first = self._used
        if first + family.width > _CELLS:
            raise OSError("the slot is full")
        self._reserve(first + family.width)
        series = Series(family, labels, first, time.time())
        self._append(self._writer.records(series))
        self._writer.written(series)
        self._used = first + family.width
        self.series.append(series)
        return first

    def filled(self) -> int:
        """Return how many cells are in use."""
        return self._used

    def let_go(self) -> None:
        """Leave the slot to whoever comes next; in a forked child, to the parent."""
        for descriptor in (self._lock, self._keys, self._file):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _take_over(self) -> None:
        # What a dead worker's gauges showed is nobody's state now; only then is the slot's writer alive.
        for one in self.series:
            if one.family.kind == "gauge":
                self.values[one.first] = self.values[one.first + 1] = 0.0
        self.values[_PID] = 0.0
        self.values[_START] = float(start_of(os.getpid()))
        self.values[_PID] = float(os.getpid())
        self.values[0] = _MARK

    def _append(self, records: bytes) -> None:
        written = 0
        try:
            # In one piece: a reader then sees whole records, or none of them.
            written = os.write(self._keys, records)
        finally:
            if written == len(records):
                self._told += written
            else:
                os.truncate(self._keys, self._told)
        if written != len(records):
            raise OSError("the records of a series were cut off")

    def _reserve(self, cells: int) -> None:
        if cells * _CELL > self._reserved:
            size = -(-cells * _CELL // _STEP) * _STEP
            os.posix_fallocate(self._file, self._reserved, size - self._reserved)
            self._reserved = size

    def _read(self, on_error: Callable[[MetricError], None]) -> KeyReader:
        keys = KeyReader()
        try:
            if self._keys_path.exists() or self._values_path.exists():
                keys.feed(self._keys_path.read_bytes())
                _check(self._values_path, keys)
        except (MetricError, OSError) as error:
            self._set_aside(error, on_error)
            return KeyReader()
        return keys

    def _set_aside(self, error: Exception, on_error: Callable[[MetricError], None]) -> None:
        for path in (self._values_path, self._keys_path):
            with contextlib.suppress(FileNotFoundError):
                path.replace(path.with_name(path.name + ".damaged"))  # one at most: the last
        told = MetricError(
            f"What worker {self.number} counted before is damaged; it is set aside in"
            f" {self._values_path.parent}, and its counters begin at 0. {error}"
        )
        told.__cause__ = error
        on_error(told)


class Sibling:
    """Another worker's slot, or a dead one's, as a scrape reads it.

    Args:
        folder: Of the instance.
        number: Of the slot.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self._values_path = folder / f"{number}.values"
        self._keys_path = folder / f"{number}.keys"
        self._keys = KeyReader()
        self._identity: tuple[int, int] | None = None
        self.values: memoryview[float] | None = None

    @property
    def series(self) -> list[Series]:
        """Its series as far as they were read; it only grows."""
        return self._keys.series

    @property
    def is_alive(self) -> bool:
        """Whether its writer runs."""
        return self.values is not None and is_running(int(self.values[_PID]), int(self.values[_START]))

    def filled(self) -> int:
        """Return how many cells are in use."""
        return self._keys.cells

    def refresh(self) -> bool:
        """Read what came since the last time; False when it is another file now and all is to be read anew.

        Raises:
            MetricError: It is damaged.
            OSError: It cannot be read.
        """
        found = self._values_path.stat()
        identity = (found.st_dev, found.st_ino)
        if self._identity is not None and self._identity != identity:
            return False
        with self._keys_path.open("rb") as file:
            file.seek(self._keys.read)
            self._keys.feed(file.read())
        if not found.st_size and not self._keys.series:
            return True  # it is just being made
        if found.st_size < max(self._keys.cells, HEADER) * _CELL:
            raise MetricError(f"The values of worker {self.number} are cut off.")
        if self._identity is None:
            with self._values_path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), found.st_size, prot=mmap.PROT_READ)
            self.values = memoryview(mapped)[: found.st_size // _CELL * _CELL].cast("d")
            self._identity = identity
        return True


def numbers_in(folder: Path) -> Iterator[int]:
    """Give the numbers of the slots that are there."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name, _, kind = entry.name.partition(".")
            if kind == "values" and name.isdigit():
                yield int(name)


def _check(values: Path, keys: KeyReader) -> None:
    with values.open("rb") as file:
        if os.fstat(file.fileno()).st_size < max(keys.cells, HEADER) * _CELL:
            raise MetricError("The values are cut off.")
        mark = memoryview(file.read(_CELL)).cast("d")[0]
    # A writer that was killed in its first moment has left no mark and no series.
    if mark != _MARK and keys.series:
        raise MetricError("The values do not begin with their mark.")

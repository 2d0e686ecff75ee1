"""A slot: the values of one worker, in files that outlive it.

`N.values` holds doubles; its one writer maps it, others read it. `N.keys` says which series has which cells.
`N.lock` is held by the writer while it lives (flock: the kernel releases it however the process ends). A
worker that finds a free lock adopts the slot with everything that was counted in it, so nothing is lost.

The values file is sparse and has its full size from the start. Pages are allocated before they are used:
writing to a mapped page that the file system has no room for raises SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import mmap
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._family import Series
from watchkeeper.metrics.shared._keys import KeyReader, KeyWriter
from watchkeeper.metrics.shared._processes import is_running, start_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from watchkeeper.metrics._family import Family

CELL: Final = 8  # bytes of a cell
HEADER: Final = 8
"""Cells before the first series: magic number, the writer's pid and start time, cells in use; four unused."""
PID: Final = 1
START: Final = 2
USED: Final = 3

_MAGIC: Final = 6.02214076e23  # also rejects files that were written with the other byte order
_CELLS: Final = 1 << 24  # 128 MiB of address space: a million histograms
_ALLOCATION: Final = 64 * 1024
_MAX_SLOTS: Final = 1024


class Slot:
    """The slot that this process writes to; `lock` is the held descriptor, `number` the worker's label."""

    def __init__(self, folder: Path, number: int, lock: int, on_error: Callable[[MetricError], None]) -> None:
        self.number = number
        self._values_path = folder / f"{number}.values"
        self._keys_path = folder / f"{number}.keys"
        keys = self._read_keys(on_error)
        self.series = keys.series
        self._writer = KeyWriter(keys.families)
        self._adopted = {(one.family.shape, one.labels): one.first for one in keys.series}
        self._counts = Counter(one.family.shape for one in keys.series)
        self._used = max(keys.cells, HEADER)
        self._allocated = 0
        self._keys_size = keys.size
        with contextlib.ExitStack() as undo:
            self._keys = _open(self._keys_path, os.O_WRONLY | os.O_APPEND)
            undo.callback(os.close, self._keys)
            self._file = _open(self._values_path, os.O_RDWR)
            undo.callback(os.close, self._file)
            os.truncate(self._keys, keys.size)  # drop a record that a kill cut off
            # Allocate before extending: a file of the full size then always has an allocated header.
            self._allocate(self._used)
            os.truncate(self._file, _CELLS * CELL)
            self.values = memoryview(mmap.mmap(self._file, _CELLS * CELL)).cast("d")
            undo.pop_all()
        self._descriptors: tuple[int, ...] = (lock, self._keys, self._file)
        self._write_header()

    @classmethod
    def claim(cls, folder: Path, on_error: Callable[[MetricError], None]) -> Slot:
        """Adopt the first slot whose writer has ended, or create one; a damaged one is set aside."""
        for number in range(_MAX_SLOTS):
            lock = _open(folder / f"{number}.lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(lock).st_nlink:
                    raise FileNotFoundError(errno.ENOENT, "the folder is being removed")  # noqa: TRY301
                return cls(folder, number, lock, on_error)
            except BlockingIOError:
                os.close(lock)
            except BaseException:
                os.close(lock)
                raise
        raise MetricError(f"There are {_MAX_SLOTS} workers in {folder} already.")

    def count(self, family: Family) -> int:
        """Return how many series of a family have cells, including those of earlier workers."""
        return self._counts[family.shape]

    def has(self, family: Family, labels: tuple[str, ...]) -> bool:
        """Return whether an earlier worker left this series."""
        return (family.shape, labels) in self._adopted

    def place(self, family: Family, labels: tuple[str, ...]) -> int:
        """Return the first cell of a series: the one that an earlier worker used, or a new one at 0."""
        first = self._adopted.get((family.shape, labels))
        if first is not None:
            return first
        first = self._used
        if first + family.width > _CELLS:
            raise OSError(errno.ENOSPC, "the slot is full")
        self._allocate(first + family.width)
        series = Series(family, labels, first, time.time())
        self._append(self._writer.encode(series))
        self._writer.note_written(series)
        self._used = first + family.width
        # Updated after the record, so that a peer that reads it, then the keys, finds a key for every cell.
        self.values[USED] = float(self._used)
        self.series.append(series)
        self._counts[family.shape] += 1
        return first

    def read(self) -> bytes:
        """Return all cells in use, as they are now."""
        return self.values[: self._used].tobytes()

    def release(self) -> None:
        """Close the slot: another worker can claim it. In a forked child, the parent keeps it."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        # A second call closes nothing: the descriptors may belong to other files by then.
        self._descriptors = ()

    def _write_header(self) -> None:
        # Clear the gauges of the dead worker before the header says that the slot's writer is alive.
        for one in self.series:
            if one.family.kind == "gauge":
                self.values[one.first] = self.values[one.first + 1] = 0.0
        self.values[PID] = 0.0
        self.values[START] = float(start_time(os.getpid()))
        self.values[USED] = float(self._used)
        self.values[PID] = float(os.getpid())
        self.values[0] = _MAGIC

    def _append(self, record: bytes) -> None:
        written = 0
        try:
            written = os.write(self._keys, record)
        finally:
            if written == len(record):
                self._keys_size += written
            else:
                os.truncate(self._keys, self._keys_size)
        if written != len(record):
            raise OSError(errno.ENOSPC, "the record of a series was cut off")

    def _allocate(self, cells: int) -> None:
        if cells * CELL > self._allocated:
            size = -(-cells * CELL // _ALLOCATION) * _ALLOCATION
            os.posix_fallocate(self._file, self._allocated, size - self._allocated)
            self._allocated = size

    def _read_keys(self, on_error: Callable[[MetricError], None]) -> KeyReader:
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
                path.replace(path.with_name(path.name + ".damaged"))  # only the last one is kept
        report = MetricError(
            f"What worker {self.number} counted before is damaged; it is set aside in"
            f" {self._values_path.parent}, and its counters begin at 0. {error}"
        )
        report.__cause__ = error
        on_error(report)


def is_alive(header: Sequence[float]) -> bool:
    """Return whether the writer of the slot with this header is running."""
    try:
        return is_running(int(header[PID]), int(header[START]))
    except (IndexError, ValueError, OverflowError):
        return False  # the slot is being created, or damaged


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _check(path: Path, keys: KeyReader) -> None:
    """Raise MetricError if the values, or the keys, are cut off or damaged."""
    with path.open("rb") as file:
        content = file.read(max(keys.cells, HEADER) * CELL)
    values = memoryview(content[: len(content) // CELL * CELL]).cast("d")
    has_mark = len(values) > 0 and values[0] == _MAGIC
    if not has_mark and not keys.series:
        return  # its writer was killed while it created the slot
    if len(values) < max(keys.cells, HEADER):
        raise MetricError("The values are cut off.")
    if not has_mark:
        raise MetricError("The values do not begin with their mark.")
    if not HEADER <= values[USED] <= max(keys.cells, HEADER):
        raise MetricError("The keys are cut off.")
    for one in keys.series:
        cells = values[one.first : one.first + one.family.width]
        if one.family.kind != "gauge" and not all(map(math.isfinite, cells)):
            raise MetricError(f"A value of {one.family.name!r} is not finite.")

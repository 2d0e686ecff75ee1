"""Reads the values of all workers of an instance into the lines of a scrape.

The work is done in steps of a millisecond or two, so that who runs them on an event loop can let others in
between.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final, Protocol

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics.exposition._tables import Reading, Table
from watchkeeper.metrics.exposition._text import head
from watchkeeper.metrics.shared._peer import Peer, numbers_in
from watchkeeper.metrics.shared._slot import CELL, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from watchkeeper.metrics._family import Family, Series
    from watchkeeper.metrics._store import Exemplar, Memory
    from watchkeeper.metrics.exposition._tables import Block

_SERIES_AT_ONCE: Final = 512
_COARSE: Final = 4096 * CELL
_FINE: Final = 128 * CELL


class _Origin(Protocol):
    """Where the values of a worker come from: this process's memory, or another's slot."""

    @property
    def series(self) -> Sequence[Series]: ...

    def read(self) -> bytes: ...


class _Source:
    """What is known of one worker's values: as they were at the last scrape, and which rows they belong to.

    Args:
        origin: Where they come from.
    """

    def __init__(self, origin: _Origin) -> None:
        self._origin = origin
        self._taken = 0
        self._firsts: list[int] = []
        self._blocks: list[Block] = []
        self._rows: list[int] = []
        self._bytes = b""
        self.cells = memoryview(b"").cast("d")

    def take_in(self, find: Callable[[Series], tuple[Block, int] | None]) -> Iterator[str]:
        """Take in the series that came since the last time, each into its block and row."""
        series = self._origin.series
        for at in range(self._taken, len(series)):
            place = find(series[at])
            if place is not None:
                self._firsts.append(series[at].first)
                self._blocks.append(place[0])
                self._rows.append(place[1])
            self._taken = at + 1
            if at % _SERIES_AT_ONCE == 0:
                yield ""

    def read(self) -> Iterator[str]:
        """Read all values, and mark the rows in which one has changed."""
        before, now = self._bytes, self._origin.read()
        if now == before:
            return
        self._bytes, self.cells = now, memoryview(now).cast("d")
        for start in range(0, len(now), _COARSE):
            end = min(start + _COARSE, len(now))
            if now[start:end] != before[start:end]:
                changed = start  # from here on
                for at in range(start, end, _FINE):
                    if now[at : at + _FINE] == before[at : at + _FINE]:
                        self._mark(changed // CELL, at // CELL)
                        changed = at + _FINE
                self._mark(changed // CELL, end // CELL)
            yield ""

    def _mark(self, begin: int, end: int) -> None:
        if begin >= end:
            return
        firsts = self._firsts
        # The series that begins before `begin` may reach into it.
        touched = slice(max(bisect_right(firsts, begin) - 1, 0), bisect_left(firsts, end))
        for block, row in zip(self._blocks[touched], self._rows[touched], strict=True):
            block.dirty.add(row)


class Reader:
    """Sums what the workers of one instance have counted.

    Args:
        memory: What this process counts in.
        on_error: Called with what cannot be read and is left out.
        number: The number of this worker.
        folder: Of the instance; None without other workers.
    """

    def __init__(
        self,
        memory: Memory,
        on_error: Callable[[MetricError], None],
        *,
        number: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.memory = memory
        self.is_busy = False
        """Whether a scrape is being made: a reader serves one at a time."""
        self._on_error = on_error
        self._number = number
        self._folder = folder
        self._reset()

    def _reset(self) -> None:
        """Forget what was read, so that the next scrape reads everything."""
        self._peers: dict[int, Peer] = {}
        self._sources = {self._number: _Source(self.memory)}
        self._tables: dict[str, Table] = {}
        self._garbled: set[int] = set()

    def steps(
        self,
        declared: Mapping[str, Family],
        *,
        openmetrics: bool = False,
        created: bool = False,
        exemplars: Mapping[int, Mapping[int, Exemplar]] | None = None,
    ) -> Iterator[str]:
        """Give the lines of all families, in pieces, which may be empty.

        Args:
            declared: The families of this process by name: they come first, in this order.
            openmetrics: Whether to write OpenMetrics.
            created: Whether to tell when series began (OpenMetrics).
            exemplars: Of each worker, by cell; they are written (OpenMetrics).
        """
        self.is_busy = True
        try:
            yield from self._steps(declared, openmetrics, created, exemplars or {})
        except (
            BaseException
        ):  # one that is given up too: what was read and is not written yet would be missed
            self._reset()
            raise
        finally:
            self.is_busy = False

    def _steps(
        self,
        declared: Mapping[str, Family],
        openmetrics: bool,  # noqa: FBT001 - handed on by name above
        created: bool,  # noqa: FBT001 - the same
        exemplars: Mapping[int, Mapping[int, Exemplar]],
    ) -> Iterator[str]:
        shapes = [
            (declared.get(name, table.family).shape, table.family.shape)
            for name, table in self._tables.items()
        ]
        if any(declares != shows for declares, shows in shapes):
            self._reset()  # another worker's declaration was seen before this one's own
        reading = yield from self._read(declared)
        if openmetrics:
            reading.created = created
            reading.exemplars = {worker: (sorted(one), one) for worker, one in exemplars.items()}
        for table in self._in_order(declared):
            started = False
            for block in table.blocks:
                text = block.write(reading)
                if text and not started:
                    started = True
                    text = head(table.family, openmetrics=openmetrics) + text
                yield text
            if not started:
                yield head(table.family, openmetrics=openmetrics)
        for worker in reading.garbled - self._garbled:
            self._on_error(
                MetricError(
                    f"Worker {worker} has a series whose values are no numbers: it is left out. A worker that"
                    " starts after that one has ended counts on."
                )
            )
        self._garbled |= reading.garbled

    def _find_peers(self) -> Iterator[str]:
        """Look for other workers, and for what they declared since the last time."""
        folder = self._folder
        if folder is None:
            return
        for number in self._numbers(folder):
            try:
                peer = self._peers.get(number) or Peer(folder, number)
                if peer.is_replaced():
                    # Set aside and begun anew by its next worker: what was added up of it does not hold.
                    self._reset()
                    yield from self._find_peers()
                    return
                yield from peer.refresh()
            except (MetricError, OSError) as error:
                self._tell(f"The figures of worker {number} cannot be read and are left out.", error)
            else:
                self._peers[number] = peer
                self._sources.setdefault(number, _Source(peer))

    def _numbers(self, folder: Path) -> list[int]:
        try:
            return [number for number in numbers_in(folder) if number != self._number]
        except OSError as error:
            self._tell(f"{folder} cannot be read: workers that come now are left out.", error)
            return []

    def _read(self, declared: Mapping[str, Family]) -> Generator[str, None, Reading]:
        yield from self._find_peers()
        for worker, source in self._sources.items():

            def find(series: Series, worker: int = worker) -> tuple[Block, int] | None:
                return self._find(worker, series, declared)

            yield from source.take_in(find)
        for source in self._sources.values():
            yield from source.read()
        cells = {worker: source.cells for worker, source in self._sources.items()}
        # By what was read: an adopter clears the gauges before it says that it is there.
        alive = {worker for worker, header in cells.items() if worker == self._number or is_alive(header)}
        return Reading(cells=cells, alive=frozenset(alive))

    def _tell(self, text: str, cause: Exception) -> None:
        error = MetricError(text)
        error.__cause__ = cause
        self._on_error(error)

    def _find(self, worker: int, series: Series, declared: Mapping[str, Family]) -> tuple[Block, int] | None:
        name = series.family.name
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = Table(declared.get(name, series.family))
        if series.family.shape != table.family.shape:
            self._on_error(
                MetricError(
                    f"Worker {worker} declares {name!r} in another way than this one: what it counts there is"
                    " left out. Let all workers run the same code."
                )
            )
            return None
        return table.add(worker, series)

    def _in_order(self, declared: Mapping[str, Family]) -> Iterator[Table]:
        for name, family in declared.items():
            yield self._tables.get(name) or Table(family)
        for name, table in list(self._tables.items()):
            if name not in declared:
                yield table

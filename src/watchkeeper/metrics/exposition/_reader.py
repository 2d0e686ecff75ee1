"""Renders the values of all workers as the lines of a scrape, in steps of a millisecond or two."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics.exposition._tables import Reading, Table
from watchkeeper.metrics.exposition._text import format_head
from watchkeeper.metrics.shared._peer import Peer, slot_numbers
from watchkeeper.metrics.shared._slot import CELL, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from pathlib import Path

    from watchkeeper.metrics._family import Family, Series
    from watchkeeper.metrics._store import Exemplar, Memory
    from watchkeeper.metrics.exposition._tables import Block

_SERIES_PER_STEP: Final = 512
_COARSE: Final = 4096 * CELL
_FINE: Final = 128 * CELL


class _Source:
    """One worker's values as of the last scrape, and the rows that they belong to."""

    def __init__(self, values: Memory | Peer) -> None:
        self._values = values
        self._series_read = 0
        self._firsts: list[int] = []
        self._blocks: list[Block] = []
        self._rows: list[int] = []
        self._bytes = b""
        self.cells = memoryview(b"").cast("d")

    def add_new_series(self, find_row: Callable[[Series], tuple[Block, int] | None]) -> Iterator[str]:
        """Find the rows of the series that are new since the last scrape, in steps."""
        series = self._values.series
        for index in range(self._series_read, len(series)):
            found = find_row(series[index])
            if found is not None:
                self._firsts.append(series[index].first)
                self._blocks.append(found[0])
                self._rows.append(found[1])
            self._series_read = index + 1
            if index % _SERIES_PER_STEP == 0:
                yield ""

    def read(self) -> Iterator[str]:
        """Read all values and mark the rows with a changed one as dirty, in steps."""
        before, now = self._bytes, self._values.read()
        if now == before:
            return
        self._bytes, self.cells = now, memoryview(now).cast("d")
        for start in range(0, len(now), _COARSE):
            end = min(start + _COARSE, len(now))
            if now[start:end] != before[start:end]:
                changed = start  # the start of a run of changed pieces
                for offset in range(start, end, _FINE):
                    if now[offset : offset + _FINE] == before[offset : offset + _FINE]:
                        self._mark_dirty(changed // CELL, offset // CELL)
                        changed = offset + _FINE
                self._mark_dirty(changed // CELL, end // CELL)
            yield ""

    def _mark_dirty(self, begin: int, end: int) -> None:
        if begin >= end:
            return
        firsts = self._firsts
        # The last series that begins before `begin` may extend into the range.
        touched = slice(max(bisect_right(firsts, begin) - 1, 0), bisect_left(firsts, end))
        for block, row in zip(self._blocks[touched], self._rows[touched], strict=True):
            block.dirty.add(row)


class Reader:
    """Sums what the workers have counted; `on_error` gets errors of reading; what failed is left out."""

    def __init__(
        self,
        memory: Memory,
        on_error: Callable[[MetricError], None],
        *,
        number: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.memory = memory
        self.is_busy = False  # whether a scrape is in progress: a reader serves one at a time
        self._on_error = on_error
        self._number = number
        self._folder = folder
        self._reset()

    def _reset(self) -> None:
        """Forget what was read, so that the next scrape reads everything."""
        self._peers: dict[int, Peer] = {}
        self._sources = {self._number: _Source(self.memory)}
        self._tables: dict[str, Table] = {}
        self._corrupt: set[int] = set()

    def steps(
        self,
        declared: Mapping[str, Family],
        *,
        openmetrics: bool = False,
        created: bool = False,
        exemplars: Mapping[int, Mapping[int, Exemplar]] | None = None,
    ) -> Iterator[str]:
        """Yield the lines of all families in pieces, some empty; the `declared` ones come first."""
        self.is_busy = True
        try:
            yield from self._steps(declared, openmetrics, created, exemplars or {})
        except BaseException:
            # Also when the caller abandons the scrape: values that were read but not rendered would be lost.
            self._reset()
            raise
        finally:
            self.is_busy = False

    def _steps(
        self,
        declared: Mapping[str, Family],
        openmetrics: bool,  # noqa: FBT001 - passed on by `steps`
        created: bool,  # noqa: FBT001 - the same
        exemplars: Mapping[int, Mapping[int, Exemplar]],
    ) -> Iterator[str]:
        if any(
            name in declared and declared[name].shape != table.family.shape
            for name, table in self._tables.items()
        ):
            self._reset()  # a peer's declaration was read before this process declared another one
        reading = yield from self._read(declared)
        if openmetrics:
            reading.created = created
            reading.exemplars = {worker: (sorted(one), one) for worker, one in exemplars.items()}
        for table in self._in_order(declared):
            started = False
            for block in table.blocks:
                text = block.render(reading)
                if text and not started:
                    started = True
                    text = format_head(table.family, openmetrics=openmetrics) + text
                yield text
            if not started:
                yield format_head(table.family, openmetrics=openmetrics)
        for worker in reading.corrupt - self._corrupt:
            self._on_error(
                MetricError(
                    f"Worker {worker} has a series with values that are not finite: it is left out. The next"
                    " worker in its slot counts on."
                )
            )
        self._corrupt |= reading.corrupt

    def _read(self, declared: Mapping[str, Family]) -> Generator[str, None, Reading]:
        yield from self._find_peers()
        for worker, source in self._sources.items():

            def find_row(series: Series, worker: int = worker) -> tuple[Block, int] | None:
                return self._find_row(worker, series, declared)

            yield from source.add_new_series(find_row)
        for source in self._sources.values():
            yield from source.read()
        cells = {worker: source.cells for worker, source in self._sources.items()}
        # From the values just read: a slot's next worker clears its gauges before it writes its pid.
        alive = {worker for worker, header in cells.items() if worker == self._number or is_alive(header)}
        return Reading(cells=cells, alive=frozenset(alive))

    def _find_peers(self) -> Iterator[str]:
        """Find the other workers, and what they declared since the last scrape."""
        folder = self._folder
        if folder is None:
            return
        for number in self._peer_numbers(folder):
            try:
                peer = self._peers.get(number) or Peer(folder, number)
                if peer.is_replaced():
                    # Its slot was set aside and started again: sums that include the old values are wrong.
                    self._reset()
                    yield from self._find_peers()
                    return
                yield from peer.refresh()
            except (MetricError, OSError) as error:
                self._report(f"The metrics of worker {number} cannot be read and are left out.", error)
            else:
                self._peers[number] = peer
                self._sources.setdefault(number, _Source(peer))

    def _peer_numbers(self, folder: Path) -> list[int]:
        try:
            return [number for number in slot_numbers(folder) if number != self._number]
        except OSError as error:
            self._report(f"{folder} cannot be read: new workers are left out.", error)
            return []

    def _find_row(
        self, worker: int, series: Series, declared: Mapping[str, Family]
    ) -> tuple[Block, int] | None:
        name = series.family.name
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = Table(declared.get(name, series.family))
        if series.family.shape != table.family.shape:
            self._on_error(
                MetricError(
                    f"Worker {worker} declares {name!r} differently from this one: what it counts there is"
                    " left out. Run the same code in all workers."
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

    def _report(self, text: str, cause: Exception) -> None:
        error = MetricError(text)
        error.__cause__ = cause
        self._on_error(error)

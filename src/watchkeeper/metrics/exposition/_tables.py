"""The series of a family across all workers: summed, and rendered again only where something changed."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from math import isfinite
from operator import add
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeAlias

from watchkeeper.metrics._validation import WORKER
from watchkeeper.metrics.exposition._text import (
    CounterWriter,
    HistogramWriter,
    add_exemplars,
    format_created,
    format_labels,
    format_value,
)
from watchkeeper.metrics.shared._slot import CELL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from watchkeeper.metrics._family import Family, Series
    from watchkeeper.metrics._store import Exemplar

_BLOCK_ROWS: Final = 128
_MISSING: Final = -1
Block: TypeAlias = "SummedBlock | GaugeBlock"
_worker_sets: Final[dict[tuple[int, ...], tuple[int, ...]]] = {}


@dataclass(kw_only=True, slots=True)
class Reading:
    """The values of all workers at one scrape."""

    cells: Mapping[int, memoryview[float]]
    alive: frozenset[int]  # gauges of other workers are not shown
    # Of each worker: the cells that have one, in order, and the exemplars by cell; empty if not wanted.
    exemplars: Mapping[int, tuple[Sequence[int], Mapping[int, Exemplar]]] = field(default_factory=dict)
    created: bool = False
    corrupt: set[int] = field(default_factory=set)


class Table:
    """The rows of one family: one for each label set."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.blocks: list[Block] = []
        self._rows: dict[tuple[str, ...], int] = {}

    def add(self, worker: int, series: Series) -> tuple[Block, int]:
        """Add a series of a worker; return its block and its row there."""
        row = self._rows.setdefault(series.labels, len(self._rows))
        index, row_in_block = divmod(row, _BLOCK_ROWS)
        if index == len(self.blocks):
            is_gauge = self.family.kind == "gauge"
            self.blocks.append(GaugeBlock(self.family) if is_gauge else SummedBlock(self.family))
        block = self.blocks[index]
        block.add(worker, row_in_block, series)
        return block, row_in_block


class SummedBlock:
    """Rows of a counter or histogram: cells are summed across all workers, running or not.

    A row is an index into several lists instead of an object. The garbage collector does not traverse strings
    and numbers, so 100,000 rows do not make it pause the process.
    """

    def __init__(self, family: Family) -> None:
        self.dirty: set[int] = set()  # the rows with a cell that has changed since they were rendered
        self._family = family
        self._width = family.width
        self._writer = HistogramWriter(family) if family.kind == "histogram" else CounterWriter(family)
        self._labels: list[tuple[str, ...]] = []
        self._created: list[float] = []
        self._unpack = Struct(f"{family.width}d").unpack_from
        # The workers that have each row, as one shared tuple for each set of workers.
        self._workers: list[tuple[int, ...]] = []
        # For each worker, the byte offset of each row in its cells.
        self._offsets: dict[int, list[int]] = {}
        self._templates: list[str] = []
        self._texts: list[str] = []
        self._text = ""

    def add(self, worker: int, row: int, series: Series) -> None:
        """Record where a worker has the series of a row, which may be a new row."""
        if row == len(self._labels):
            self._labels.append(series.labels)
            self._created.append(series.created)
            self._workers.append(())
            self._templates.append(self._writer.template(series.labels))
            self._texts.append("")
        self._created[row] = min(self._created[row], series.created)
        workers = self._workers[row]
        if worker not in workers:
            self._workers[row] = _worker_sets.setdefault((*workers, worker), (*workers, worker))
        offsets = self._offsets.setdefault(worker, [])
        offsets += [_MISSING] * (row + 1 - len(offsets))
        offsets[row] = series.first * CELL
        self.dirty.add(row)

    def render(self, reading: Reading) -> str:
        """Return the lines of all rows."""
        if self.dirty:
            for row, text in self._render_rows(self.dirty, reading):
                self._texts[row] = text
            self.dirty.clear()
            self._text = "".join(self._texts)
        found = self._find_exemplars(reading) if reading.exemplars else {}
        if not found and not reading.created:
            return self._text
        texts = self._texts.copy()
        for row, exemplars in found.items():
            texts[row] = add_exemplars(texts[row], exemplars)
        if reading.created:
            for row, (labels, created) in enumerate(zip(self._labels, self._created, strict=True)):
                texts[row] += format_created(self._family, labels, created)
        return "".join(texts)

    def _render_rows(self, rows: Collection[int], reading: Reading) -> Iterator[tuple[int, str]]:
        """Sum and render these rows, all rows of the same workers at once, so that C does the loops."""
        worker_sets = set(map(self._workers.__getitem__, rows))
        for workers in worker_sets:
            several = len(worker_sets) > 1
            members = [row for row in rows if self._workers[row] is workers] if several else rows
            templates = [self._templates[row] for row in members]
            totals: list[float] = []
            for worker in workers:
                offsets = map(self._offsets[worker].__getitem__, members)
                cells = chain.from_iterable(map(self._unpack, repeat(reading.cells[worker]), offsets))
                totals = list(map(add, totals, cells)) if totals else list(cells)
            texts = None
            if isfinite(sum(totals)):
                with suppress(OverflowError):  # of a sum of buckets
                    texts = self._writer.write(templates, totals)
            if texts is None:
                texts = self._writer.write(templates, self._sum_finite(workers, members, reading))
            yield from zip(members, texts, strict=True)

    def _sum_finite(self, workers: Iterable[int], rows: Iterable[int], reading: Reading) -> list[float]:
        """Sum these rows without those of a worker that would make a sum infinite or NaN: it is corrupt."""
        totals: list[float] = []
        for row in rows:
            total = [0.0] * self._width
            for worker in workers:
                cells = self._unpack(reading.cells[worker], self._offsets[worker][row])
                added = list(map(add, total, cells))
                if isfinite(sum(map(abs, added))):
                    total = added
                else:
                    reading.corrupt.add(worker)
            totals += total
        return totals

    def _find_exemplars(self, reading: Reading) -> dict[int, dict[int, Exemplar]]:
        """Return the latest exemplar of each cell, by row and by the cell's index in the row."""
        found: dict[int, dict[int, Exemplar]] = {}
        for worker, (cells, exemplars) in reading.exemplars.items():
            for row, offset in enumerate(self._offsets.get(worker, ()) if cells else ()):
                if offset == _MISSING:
                    continue
                first = offset // CELL
                begin = bisect_left(cells, first)
                for cell in cells[begin : bisect_left(cells, first + self._width, begin)]:
                    of_row, exemplar = found.setdefault(row, {}), exemplars[cell]
                    known = of_row.get(cell - first)
                    if known is None or known.timestamp < exemplar.timestamp:
                        of_row[cell - first] = exemplar
        return found


class GaugeBlock:
    """Rows of a gauge: the values of the running workers become one by its multiprocess mode."""

    def __init__(self, family: Family) -> None:
        self.dirty: set[int] = set()
        self._family = family
        self._labels: list[tuple[str, ...]] = []
        self._first_cells: list[dict[int, int]] = []

    def add(self, worker: int, row: int, series: Series) -> None:
        """Record where a worker has the series of a row, which may be a new row."""
        if row == len(self._labels):
            self._labels.append(series.labels)
            self._first_cells.append({})
        self._first_cells[row][worker] = series.first

    def render(self, reading: Reading) -> str:
        """Return the lines of all rows that have a value."""
        self.dirty.clear()
        per_worker = self._family.multiprocess_mode == "worker"
        names = (*self._family.labels, WORKER) if per_worker else self._family.labels
        lines = []
        for labels, value in self._values(reading):
            pairs = format_labels(names, labels)
            lines.append(f"{self._family.name}{f'{{{pairs}}}' if pairs else ''} {format_value(value)}\n")
        return "".join(lines)

    def _values(self, reading: Reading) -> Iterator[tuple[tuple[str, ...], float]]:
        mode = self._family.multiprocess_mode
        for labels, first_cells in zip(self._labels, self._first_cells, strict=True):
            stamped = {
                worker: (reading.cells[worker][first + 1], reading.cells[worker][first])
                for worker, first in first_cells.items()
                if worker in reading.alive and reading.cells[worker][first + 1]
            }
            if mode == "latest":
                stamped = dict(sorted(stamped.items(), key=lambda item: abs(item[1][0]))[-1:])
            shown = {worker: value for worker, (stamp, value) in stamped.items() if stamp > 0.0}
            if mode == "worker":
                yield from (((*labels, str(worker)), value) for worker, value in sorted(shown.items()))
            elif shown:
                combine = {"max": max, "min": min}.get(mode, sum)
                yield labels, float(combine(shown.values()))

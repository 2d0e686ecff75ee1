"""All series of a family over all workers: added up, and written anew only where something changed.

Rows are kept in blocks, small enough that a block's work does not hold up the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from math import isfinite
from operator import add
from struct import Struct
from typing import TYPE_CHECKING, Final, Protocol

from watchkeeper.metrics._validation import WORKER
from watchkeeper.metrics.exposition._text import (
    HistogramWriter,
    PlainWriter,
    created_line,
    label_pairs,
    number,
    with_exemplars,
)
from watchkeeper.metrics.shared._slot import CELL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from watchkeeper.metrics._family import Family, Series
    from watchkeeper.metrics._store import Exemplar

BLOCK: Final = 128
"""Rows of a block."""

_NOWHERE: Final = -1
_same_tuples: Final[dict[tuple[int, ...], tuple[int, ...]]] = {}


@dataclass(kw_only=True, slots=True)
class Reading:
    """The values of all workers at a scrape.

    Args:
        cells: Of each worker, by its number.
        alive: The workers that run: the gauges of others are not shown.
        exemplars: Of each worker: the cells that have one, in order, and the exemplars by cell; empty where
            none are wanted.
        created: Whether to tell when series began.
        garbled: The workers that were found to have something else than numbers.
    """

    cells: Mapping[int, memoryview[float]]
    alive: frozenset[int]
    exemplars: Mapping[int, tuple[Sequence[int], Mapping[int, Exemplar]]] = field(default_factory=dict)
    created: bool = False
    garbled: set[int] = field(default_factory=set)


class Block(Protocol):
    """A few rows of a family."""

    dirty: set[int]
    """The rows of which a cell has changed since they were written."""

    def add(self, worker: int, row: int, series: Series) -> None:
        """Note where a worker has the series of a row, which may be a new one."""

    def write(self, reading: Reading) -> str:
        """Return the lines of all rows."""


class Table:
    """The rows of one family.

    Args:
        family: As it is declared.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.blocks: list[Block] = []
        self._rows: dict[tuple[str, ...], int] = {}

    def add(self, worker: int, series: Series) -> tuple[Block, int]:
        """Take in a series of a worker; return its block and its row there."""
        row = self._rows.setdefault(series.labels, len(self._rows))
        at, place = divmod(row, BLOCK)
        if at == len(self.blocks):
            gauge = self.family.kind == "gauge"
            self.blocks.append(GaugeBlock(self.family) if gauge else SummedBlock(self.family))
        block = self.blocks[at]
        block.add(worker, place, series)
        return block, place


class SummedBlock:
    """Rows of a counter or a histogram, whose cells are added up over all workers, dead or alive.

    A row is a place in a few lists and no object: of what holds only texts and numbers the garbage collector
    takes no notice, and a hundred thousand rows do not make it stop the process.
    """

    def __init__(self, family: Family) -> None:
        self.dirty: set[int] = set()
        self._family = family
        self._width = family.width
        self._writer = HistogramWriter(family) if family.kind == "histogram" else PlainWriter(family)
        self._labels: list[tuple[str, ...]] = []
        self._born: list[float] = []
        self._unpack = Struct(f"{family.width}d").unpack_from
        # The workers that have a row, one tuple for all rows that have the same; and where each has its rows.
        self._workers: list[tuple[int, ...]] = []
        self._places: dict[int, list[int]] = {}
        self._templates: list[str] = []
        self._texts: list[str] = []
        self._text = ""

    def add(self, worker: int, row: int, series: Series) -> None:
        """Note where a worker has the series of a row, which may be a new one."""
        if row == len(self._labels):
            self._labels.append(series.labels)
            self._born.append(series.born)
            self._workers.append(())
            self._templates.append(self._writer.template(series.labels))
            self._texts.append("")
        self._born[row] = min(self._born[row], series.born)
        workers = self._workers[row]
        if worker not in workers:
            self._workers[row] = _same_tuples.setdefault((*workers, worker), (*workers, worker))
        places = self._places.setdefault(worker, [])
        places += [_NOWHERE] * (row + 1 - len(places))
        places[row] = series.first * CELL
        self.dirty.add(row)

    def write(self, reading: Reading) -> str:
        """Return the lines of all rows."""
        if self.dirty:
            for row, text in self._rewrite(self.dirty, reading):
                self._texts[row] = text
            self.dirty.clear()
            self._text = "".join(self._texts)
        found = self._find_exemplars(reading) if reading.exemplars else {}
        if not found and not reading.created:
            return self._text
        texts = self._texts.copy()
        for at, exemplars in found.items():
            texts[at] = with_exemplars(texts[at], exemplars)
        if reading.created:
            for at, (labels, born) in enumerate(zip(self._labels, self._born, strict=True)):
                texts[at] += created_line(self._family, labels, born)
        return "".join(texts)

    def _rewrite(self, rows: Collection[int], reading: Reading) -> Iterator[tuple[int, str]]:
        """Add up what all workers have of these rows, and write it: many rows at once, so that C does it."""
        kinds = set(map(self._workers.__getitem__, rows))
        for workers in kinds:
            members = [row for row in rows if self._workers[row] is workers] if len(kinds) > 1 else rows
            templates = [self._templates[row] for row in members]
            totals: list[float] = []
            for worker in workers:
                places = map(self._places[worker].__getitem__, members)
                cells = chain.from_iterable(map(self._unpack, repeat(reading.cells[worker]), places))
                totals = list(map(add, totals, cells)) if totals else list(cells)
            texts = None
            if isfinite(sum(totals)):
                with suppress(OverflowError):
                    texts = self._writer.write(templates, totals)
            if texts is None:
                texts = self._writer.write(templates, self._finite_sums(workers, members, reading))
            yield from zip(members, texts, strict=True)

    def _finite_sums(self, workers: Iterable[int], rows: Iterable[int], reading: Reading) -> list[float]:
        """Add up the same, and leave out what a worker has of a row where it is no number: it is garbled."""
        totals: list[float] = []
        for row in rows:
            total = [0.0] * self._width
            for worker in workers:
                cells = self._unpack(reading.cells[worker], self._places[worker][row])
                added = list(map(add, total, cells))
                if isfinite(sum(map(abs, added))):
                    total = added
                else:
                    reading.garbled.add(worker)
            totals += total
        return totals

    def _find_exemplars(self, reading: Reading) -> dict[int, dict[int, Exemplar]]:
        found: dict[int, dict[int, Exemplar]] = {}
        for worker, (cells, exemplars) in reading.exemplars.items():
            for at, place in enumerate(self._places.get(worker, ()) if cells else ()):
                if place == _NOWHERE:
                    continue
                first = place // CELL
                begin = bisect_left(cells, first)
                for cell in cells[begin : bisect_left(cells, first + self._width, begin)]:
                    of_row, exemplar = found.setdefault(at, {}), exemplars[cell]
                    known = of_row.get(cell - first)
                    of_row[cell - first] = exemplar if known is None or known.at < exemplar.at else known
        return found


class GaugeBlock:
    """Rows of a gauge, whose values over the workers that run become one by the family's rule."""

    def __init__(self, family: Family) -> None:
        self.dirty: set[int] = set()
        self._family = family
        self._labels: list[tuple[str, ...]] = []
        self._places: list[dict[int, int]] = []

    def add(self, worker: int, row: int, series: Series) -> None:
        """Note where a worker has the series of a row, which may be a new one."""
        if row == len(self._labels):
            self._labels.append(series.labels)
            self._places.append({})
        self._places[row][worker] = series.first

    def write(self, reading: Reading) -> str:
        """Return the lines of all rows that have a value."""
        self.dirty.clear()
        names = (
            (*self._family.labels, WORKER)
            if self._family.multiprocess_mode == "worker"
            else self._family.labels
        )
        lines = []
        for labels, value in self._values(reading):
            pairs = label_pairs(names, labels)
            lines.append(f"{self._family.name}{f'{{{pairs}}}' if pairs else ''} {number(value)}\n")
        return "".join(lines)

    def _values(self, reading: Reading) -> Iterator[tuple[tuple[str, ...], float]]:
        mode = self._family.multiprocess_mode
        for labels, places in zip(self._labels, self._places, strict=True):
            said = {
                worker: (reading.cells[worker][first + 1], reading.cells[worker][first])
                for worker, first in places.items()
                if worker in reading.alive and reading.cells[worker][first + 1]
            }
            if mode == "latest":
                said = dict(sorted(said.items(), key=lambda item: abs(item[1][0]))[-1:])
            shown = {worker: value for worker, (stamp, value) in said.items() if stamp > 0.0}
            if mode == "worker":
                yield from (((*labels, str(worker)), value) for worker, value in sorted(shown.items()))
            elif shown:
                combine = {"max": max, "min": min}.get(mode, sum)
                yield labels, float(combine(shown.values()))

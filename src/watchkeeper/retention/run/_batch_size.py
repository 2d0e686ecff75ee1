"""How much a transaction takes on: what it can do in its time, and plainly where nobody has rows locked."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.retention.run._sweep import AgeSpan, BlockSpan, Span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from watchkeeper.settings import Limits

TRANSACTION_TARGET: Final = timedelta(milliseconds=50)
# What inserts beside it take, the 99th percentile over an idle table's, in half of the time: 1.0 to 1.8 with
# 1 ms, 1.8 with 2, 3 with 5, 4 with 50. In a quarter of it, with 1 ms, 1.4.
_KIND_TARGET: Final = TRANSACTION_TARGET / 50
# Below this a statement's time says nothing of its size.
_LEAST: Final = TRANSACTION_TARGET / 200

# How many rows (ages) or blocks to begin with, at least and at most.
_FIRST_SIZE: Final[Mapping[type[Span], int]] = {AgeSpan: 1000, BlockSpan: 8}
_SMALLEST_SIZE: Final[Mapping[type[Span], int]] = {AgeSpan: 100, BlockSpan: 1}
_LARGEST_SIZE: Final[Mapping[type[Span], int]] = {AgeSpan: 50_000, BlockSpan: 8192}
# The largest that an empty sweep may grow to.
_LARGEST_EMPTY: Final[Mapping[type[Span], int]] = {AgeSpan: 1000, BlockSpan: 512}
# How many statements a delete consists of.
_TRIPS: Final[Mapping[type[Span], int]] = {AgeSpan: 3, BlockSpan: 2}
# Where one row is locked, more are: so many sweeps after it are careful from the start, and twice as many
# each time that a plain one meets a locked row again.
_CAREFUL_SWEEPS: Final = 8
_MOST_CAREFUL_SWEEPS: Final = 256


class Pace:
    """Adapts the size of a run's sweeps.

    Args:
        limits: Whether it may go flat out.
    """

    def __init__(self, limits: Limits) -> None:
        self._kind = limits.budget < 1.0
        self._target = _KIND_TARGET if self._kind else TRANSACTION_TARGET
        self._sizes = dict(_FIRST_SIZE)
        self._look_size = _FIRST_SIZE[BlockSpan]
        self._careful = 0
        self._careful_sweeps = _CAREFUL_SWEEPS
        self.met_locks = False
        """Whether somebody had rows locked that were to go."""

    @property
    def look_size(self) -> int:
        """How many blocks to look through at once for what is left."""
        return self._look_size

    def size(self, span: Span) -> int:
        """Return how many rows or blocks of a span to take on."""
        return self._sizes[type(span)]

    def adapt(
        self, span: Span, *, deleted: int, deleting: timedelta, whole: timedelta, trip: timedelta
    ) -> None:
        """Take on more or less than in the sweep that took so long.

        Within a budget the delete alone counts: what comes around it takes its time however few rows go, and
        on a busy machine more than is aimed at.

        Args:
            span: What was swept.
            deleted: How many rows went.
            deleting: How long its delete took.
            whole: How long its transaction took.
            trip: How long a statement takes that does nothing, there and back.
        """
        kind = type(span)
        took = deleting - trip * _TRIPS[kind] if self._kind else whole
        size = _adapted(self._sizes[kind], self._target, took)
        # What was empty says nothing of what comes after it, which may be full.
        most = _LARGEST_SIZE[kind] if deleted else max(_LARGEST_EMPTY[kind], self._sizes[kind])
        self._sizes[kind] = min(max(size, _SMALLEST_SIZE[kind]), most)

    def adapt_look(self, took: timedelta) -> None:
        """Look through more or fewer blocks than by the look that took so long."""
        size = _adapted(self._look_size, self._target, took)
        self._look_size = min(max(size, _SMALLEST_SIZE[BlockSpan]), _LARGEST_SIZE[BlockSpan])

    def shrink(self) -> None:
        """Take on much less, because something did not succeed."""
        self._sizes = {kind: max(size // 4, _SMALLEST_SIZE[kind]) for kind, size in self._sizes.items()}

    def is_careful(self) -> bool:
        """Say whether the next sweep had better be careful from the start."""
        if not self._careful:
            return False
        self._careful -= 1
        return True

    def note_lock(self) -> None:
        """Note that a plain sweep met a locked row."""
        self.met_locks = True
        self._careful = self._careful_sweeps
        self._careful_sweeps = min(self._careful_sweeps * 2, _MOST_CAREFUL_SWEEPS)

    def note_none(self) -> None:
        """Note that a plain sweep met no locked row."""
        self._careful_sweeps = _CAREFUL_SWEEPS


def _adapted(size: int, target: timedelta, took: timedelta) -> int:
    factor = min(max(target / max(took, _LEAST), 0.5), 2.0)
    # Rounded up where it grows: one block would stay one.
    return math.ceil(size * factor) if factor > 1.0 else int(size * factor)

"""Interleaved rounds: many short measurements in turn, so that other load slows all of them alike."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Name = TypeVar("_Name")


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How long to measure; `quick` is a short run with coarse figures, to check that everything works."""

    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        """Return one of two numbers of rounds, requests or series."""
        return quick if self.quick else full


def interleave(
    names: Iterable[_Name], measure: Callable[[_Name], float], rounds: int
) -> dict[_Name, list[float]]:
    """Measure each name once in each round, every second round in reverse order.

    Args:
        names: What is compared.
        measure: Returns the value of one.
        rounds: How many, after one for warming up that is discarded.
    """
    order = list(names)
    found: dict[_Name, list[float]] = {name: [] for name in order}
    for name in order:
        measure(name)
    for _ in range(rounds):
        for name in order:
            found[name].append(measure(name))
        order.reverse()
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, all of its threads together.

    `schedstat` has nanoseconds; on kernels without it, `stat` has clock ticks.
    """
    try:
        nanoseconds = sum(int(task.read_text().split()[0]) for task in _tasks(pid))
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return nanoseconds / 1e9


def _tasks(pid: int) -> list[Path]:
    return [task / "schedstat" for task in Path(f"/proc/{pid}/task").iterdir()]

"""Progress bars of runs on a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from watchkeeper.cli._text import printable
from watchkeeper.retention._model import RunObserver

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import timedelta

    from rich.console import Console
    from rich.progress import Progress, Task

    from watchkeeper.retention._model import Pressure, Reason


class ProgressBars(RunObserver):
    """A progress bar for each policy; observes the runs."""

    def __init__(self, progress: Progress, totals: Mapping[str, int]) -> None:
        self._progress = progress
        self._tasks = {
            table: progress.add_task(table, total=total, rate="", start=False)
            for table, total in totals.items()
        }

    def deleted(self, table: str, rows: int) -> None:
        """Advance the bar of a policy."""
        task = self._started(table)
        rate = (task.completed + rows) / max(task.elapsed or 0.0, 0.05)
        self._progress.update(task.id, advance=rows, rate=f"{rate:,.0f} rows/s")

    restored = deleted

    def waiting(self, table: str, _run: int, pressure: Pressure) -> None:
        """Print why a run waits above the bars, and the reason in its own bar."""
        self._progress.console.print(printable(f"{table} waits: {pressure.detail}"), markup=False)
        self._progress.update(self._started(table).id, rate=f"waits: {pressure.reason}")

    def resumed(self, table: str, _run: int, _reason: Reason, _waited: timedelta) -> None:
        """Remove the reason."""
        self._progress.update(self._started(table).id, rate="")

    def _started(self, table: str) -> Task:
        if table not in self._tasks:
            self._tasks[table] = self._progress.add_task(table, total=None, rate="")
        task = self._progress.tasks[self._tasks[table]]
        if not task.started:
            self._progress.start_task(task.id)
        return task


@contextmanager
def open_progress(console: Console, totals: Mapping[str, int]) -> Iterator[ProgressBars]:
    """Show progress bars while the context is open."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - an extra

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield ProgressBars(progress, totals)

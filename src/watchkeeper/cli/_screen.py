"""What a command shows: tables and bars on a terminal, plain lines in a pipe, JSON where it is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from rich.console import Console
    from rich.progress import Progress, Task

    from watchkeeper.retention._model import Pressure, Reason, RunResult


# Control characters, and those that turn the direction of writing.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BESIDE_CELL: Final = 3  # what the frame takes from the width for each column
_BESIDE_TABLE: Final = 2  # and for the table
_SHORTEST_CELL: Final = 10
_KIB: Final = 1024
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600


class Screen:
    """Where a command's answer goes.

    Args:
        out: The file of the answer.
        zone: Name of the time zone that times are shown in.
        json: Whether the answer is one JSON document.
        console: rich's console on `out`, where that is a terminal and rich is installed.
    """

    def __init__(self, out: TextIO, *, zone: str, json: bool, console: Console | None) -> None:
        self._out = out
        self._zone = ZoneInfo(zone)
        self._console = console
        self.json = json

    @property
    def terminal(self) -> bool:
        """Whether a human reads along, and may be asked."""
        return self._console is not None

    def say(self, sentence: str) -> None:
        """Write one line, whatever is in it: what came from outside must not steer the terminal."""
        self._write(f"{printable(sentence)}\n")

    def document(self, value: object) -> None:
        """Write the answer as one JSON document."""
        self._write(f"{json.dumps(value, indent=2, default=_plain)}\n")

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:
            # The reader has seen enough (`| head -1`); the command still goes on to its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._out.fileno())
            os.close(nowhere)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table on a terminal; the caller writes plain lines elsewhere.

        Args:
            title: What it shows.
            columns: Heads; one that starts with `#` is a number and stands to the right.
            rows: Cells as text; the last of each is folded over lines where it is too long for one.
        """
        if self._console is None:
            raise AssertionError("a table is for a terminal")
        from rich import box  # noqa: PLC0415 - an extra, and slow to load
        from rich.markup import escape  # noqa: PLC0415 - the same
        from rich.table import Table  # noqa: PLC0415 - the same

        heads = [column.removeprefix("#") for column in columns]
        room = _room_of_last(heads, rows, self._console.width)
        if room < _SHORTEST_CELL:
            self._list(heads, rows)
            return
        title = f"{title} (times in {self._zone.key})"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
        for column, head in zip(columns, heads, strict=True):
            justify: Literal["left", "right"] = "right" if column.startswith("#") else "left"
            if column is columns[-1]:
                table.add_column(head, justify=justify, overflow="fold", max_width=room)
            else:
                table.add_column(head, justify=justify, no_wrap=True)
        for cells in rows:
            table.add_row(*(escape(printable(cell)) for cell in cells))
        self._console.print(table)

    def _list(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table as text, where the terminal is too narrow for it."""
        for first, *cells in rows:
            named = zip(heads[1:], cells, strict=True)
            told = ", ".join(f"{head.lower()} {cell}" for head, cell in named if cell)
            self.say(f"{heads[0].lower()} {first}: {told}")

    async def ask(self, question: str) -> bool:
        """Ask the human in front of the terminal; nothing but y and yes is a yes."""
        self._out.write(f"{question} [y/N] ")
        self._out.flush()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        # Not in a thread, which Ctrl-C would not get out of its read.
        loop.add_reader(sys.stdin, lambda: answer.set_result(sys.stdin.readline()))
        try:
            return (await answer).strip().lower() in {"y", "yes"}
        finally:
            loop.remove_reader(sys.stdin)

    def progress(self, totals: Mapping[str, int]) -> AbstractContextManager[ProgressBars | None]:
        """Show a progress bar for each policy; None where no one watches.

        Args:
            totals: How many rows each has to delete, as far as that is known.
        """
        return nullcontext() if self._console is None else _progress_bars(self._console, totals)

    def time(self, moment: datetime | None) -> str:
        """Return a time in the service's zone, a dash for none; the heads of tables name the zone."""
        if moment is None:
            return "-"
        local = moment.astimezone(self._zone)
        return f"{local:%Y-%m-%d %H:%M}" if self.terminal else f"{local:%Y-%m-%d %H:%M:%S %Z}"


@contextmanager
def open_screen(*, zone: str, json: bool) -> Iterator[Screen]:
    """Keep stdout for the command's answer: what anybody else writes to it meanwhile goes to stderr.

    Args:
        zone: Name of the time zone that times are shown in.
        json: Whether the answer is one JSON document.
    """
    sys.stdout.flush()
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(answer, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as out:
            yield Screen(out, zone=zone, json=json, console=_console(out, json=json))
    finally:
        os.dup2(answer, 1)
        os.close(answer)


def duration(span: timedelta) -> str:
    """Return a duration as somebody would say it."""
    seconds = span.total_seconds()
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.1f} min"
    return f"{seconds / _HOUR_S:.1f} h"


def volume(count: int) -> str:
    """Return a number of bytes as somebody would say it."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < _KIB:
            return f"{size:.0f} {unit}"
        size /= _KIB
    return f"{size:.1f} TiB"


def days(span: timedelta) -> str:
    """Return how long rows are kept."""
    count = span / timedelta(days=1)
    return f"{count:g} day{'' if count == 1 else 's'}"


def unnamed(table: str, text: str) -> str:
    """Return a sentence about a table as it is said after the table's name: that is not said twice.

    Args:
        table: The policy's name.
        text: The sentence.
    """
    return text.removeprefix(f"{table} is ")


def _console(out: TextIO, *, json: bool) -> Console | None:
    if json or not out.isatty() or not sys.stdin.isatty():
        return None
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra; without it the terminal gets plain lines
    except ImportError:
        return None
    return Console(file=out, highlight=False)


def printable(text: str) -> str:
    """Return a text that does not steer a terminal, whoever wrote it."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _room_of_last(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    """Return how much of the width the other columns leave to the last one."""
    others = list(zip(heads, *rows, strict=True))[:-1]
    return width - _BESIDE_TABLE - _BESIDE_CELL - sum(max(map(len, cells)) + _BESIDE_CELL for cells in others)


class ProgressBars:
    """A progress bar for each policy that is run."""

    def __init__(self, progress: Progress, totals: Mapping[str, int]) -> None:
        self._progress = progress
        self._tasks = {
            table: progress.add_task(table, total=total, rate="", start=False)
            for table, total in totals.items()
        }

    def advance(self, table: str, rows: int) -> None:
        """Advance the bar of a policy."""
        task = self._started(table)
        rate = (task.completed + rows) / max(task.elapsed or 0.0, 0.05)
        self._progress.update(task.id, advance=rows, rate=f"{rate:,.0f} rows/s")

    def deleted(self, table: str, rows: int) -> None:
        """Advance the bar by rows that were deleted."""
        self.advance(table, rows)

    def waiting(self, table: str, _run: int, pressure: Pressure) -> None:
        """Say what a run waits for, above the bars and beside its own."""
        self._progress.console.print(printable(f"{table} waits: {pressure.detail}"), markup=False)
        self._progress.update(self._started(table).id, rate=f"waits: {pressure.reason}")

    def resumed(self, table: str, _run: int, _reason: Reason, _waited: timedelta) -> None:
        """Take away what a run waited for."""
        self._progress.update(self._started(table).id, rate="")

    def finished(self, result: RunResult) -> None:
        """Nothing: the command prints the results at its end."""

    def _started(self, table: str) -> Task:
        if table not in self._tasks:
            self._tasks[table] = self._progress.add_task(table, total=None, rate="")
        task = self._progress.tasks[self._tasks[table]]
        if not task.started:
            self._progress.start_task(task.id)
        return task


@contextmanager
def _progress_bars(console: Console, totals: Mapping[str, int]) -> Iterator[ProgressBars]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - an extra

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield ProgressBars(progress, totals)


def _plain(value: Any) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)

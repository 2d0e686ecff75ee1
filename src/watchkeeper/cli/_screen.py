"""The output of a command: tables and progress bars on a terminal, plain lines in a pipe, or JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO
from zoneinfo import ZoneInfo

from watchkeeper.cli._text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from rich.console import Console

    from watchkeeper.cli._progress import ProgressBars

# The frame's part of the width: for each column, and for the table.
_COLUMN_FRAME: Final = 3
_TABLE_FRAME: Final = 2
_NARROWEST_CELL: Final = 10


class Screen:
    """Where a command's output goes; `console` is rich's, if `out` is a terminal and rich is installed."""

    def __init__(self, out: TextIO, *, zone: str, json: bool, console: Console | None) -> None:
        self._out = out
        self._zone = ZoneInfo(zone)
        self._console = console
        self.json = json

    @property
    def terminal(self) -> bool:
        """Whether an operator reads the output, and can be asked."""
        return self._console is not None

    def write_line(self, text: str) -> None:
        """Write one line; control characters in it are escaped."""
        self._write(f"{printable(text)}\n")

    def write_json(self, value: object) -> None:
        """Write the output as one JSON document."""
        self._write(f"{json.dumps(value, indent=2, default=_encode)}\n")

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:
            # The reader has closed the pipe (`| head -1`); the command still runs to its end.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._out.fileno())
            os.close(null)

    def write_table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table on a terminal; a column whose heading begins with `#` is aligned to the right."""
        if self._console is None:
            raise AssertionError("a table is for a terminal")
        from rich import box  # noqa: PLC0415 - an extra, and slow to load
        from rich.markup import escape  # noqa: PLC0415 - an extra, and slow to load
        from rich.table import Table  # noqa: PLC0415 - an extra, and slow to load

        headings = [column.removeprefix("#") for column in columns]
        last_width = _last_column_width(headings, rows, self._console.width)
        if last_width < _NARROWEST_CELL:
            self._write_list(headings, rows)
            return
        title = f"{title} (times in {self._zone.key})"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
        for column, heading in zip(columns, headings, strict=True):
            justify: Literal["left", "right"] = "right" if column.startswith("#") else "left"
            if column is columns[-1]:
                table.add_column(heading, justify=justify, overflow="fold", max_width=last_width)
            else:
                table.add_column(heading, justify=justify, no_wrap=True)
        for cells in rows:
            table.add_row(*(escape(printable(cell)) for cell in cells))
        self._console.print(table)

    def _write_list(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table as lines, where the terminal is too narrow for it."""
        for first, *cells in rows:
            named = zip(headings[1:], cells, strict=True)
            details = ", ".join(f"{heading.lower()} {cell}" for heading, cell in named if cell)
            self.write_line(f"{headings[0].lower()} {first}: {details}")

    async def ask(self, question: str) -> bool:
        """Ask the operator at the terminal; only y and yes mean yes."""
        self._out.write(f"{question} [y/N] ")
        self._out.flush()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        # Not in a thread: Ctrl-C would not interrupt its read.
        loop.add_reader(sys.stdin, lambda: answer.set_result(sys.stdin.readline()))
        try:
            return (await answer).strip().lower() in {"y", "yes"}
        finally:
            loop.remove_reader(sys.stdin)

    def progress(self, totals: Mapping[str, int]) -> AbstractContextManager[ProgressBars | None]:
        """Show a progress bar for each policy with its number of rows; None without a terminal."""
        from watchkeeper.cli._progress import open_progress  # noqa: PLC0415 - only a terminal needs it

        return nullcontext() if self._console is None else open_progress(self._console, totals)

    def format_time(self, time: datetime | None) -> str:
        """Return a time in the screen's zone, a dash for None; the titles of tables name the zone."""
        if time is None:
            return "-"
        local = time.astimezone(self._zone)
        return f"{local:%Y-%m-%d %H:%M}" if self.terminal else f"{local:%Y-%m-%d %H:%M:%S %Z}"


@contextmanager
def open_screen(*, zone: str, json: bool) -> Iterator[Screen]:
    """Open the screen on stdout, and redirect all other output to stderr until it closes."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(stdout, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as out:
            yield Screen(out, zone=zone, json=json, console=_console(out, json=json))
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _console(out: TextIO, *, json: bool) -> Console | None:
    if json or not out.isatty() or not sys.stdin.isatty():
        return None
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra; without it the terminal gets plain lines
    except ImportError:
        return None
    return Console(file=out, highlight=False)


def _last_column_width(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    """Return how much of the width the other columns leave to the last one."""
    others = list(zip(headings, *rows, strict=True))[:-1]
    return (
        width - _TABLE_FRAME - _COLUMN_FRAME - sum(max(map(len, cells)) + _COLUMN_FRAME for cells in others)
    )


def select_fields(value: object, *names: str) -> dict[str, object]:
    """Return these attributes by their names, for a JSON document."""
    return {name: getattr(value, name) for name in names}


def _encode(value: Any) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)

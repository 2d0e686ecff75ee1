"""The live display of a run, and the comparison at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from realestate_traffic.compare import Row
    from realestate_traffic.tally import Tally

_STYLES: Final = {2: "green", 4: "yellow", 5: "red"}


def live(tally: Tally, elapsed: float) -> RenderableType:
    """Return the display of a run in progress."""
    rate = tally.requests / elapsed if elapsed else 0.0
    head = Text(f"{elapsed:6.1f} s   {tally.requests} requests   {rate:.1f}/s   ")
    head.append(
        "   ".join(f"p{share:g} {tally.percentile(share / 100) * 1000:.1f} ms" for share in (50, 95, 99))
    )
    statuses = Text("responses ")
    for status, count in sorted(tally.statuses.items()):
        statuses.append(f"{status}: {count}   ", style=_STYLES.get(status // 100, ""))
    actions = Table(box=None, padding=(0, 2), show_header=False)
    names = sorted(tally.actions)
    for start in range(0, len(names), 5):
        actions.add_row(*(f"{name} {tally.actions[name]}" for name in names[start : start + 5]))
    parts: list[RenderableType] = [head, statuses, actions]
    if tally.unanswered:
        parts.append(Text(f"unanswered   {dict(tally.unanswered)}", style="red"))
    return Group(*parts)


def line(tally: Tally, elapsed: float) -> str:
    """Return the same on one line, for output that is not a terminal."""
    statuses = " ".join(f"{status}:{count}" for status, count in sorted(tally.statuses.items()))
    return (
        f"{elapsed:.0f} s  {tally.requests} requests  p95 {tally.percentile(0.95) * 1000:.1f} ms  {statuses}"
    )


def comparison(rows: Sequence[Row]) -> RenderableType:
    """Return both counts of each metric side by side."""
    table = Table(Column("metric", no_wrap=True), "counted", "exposed", "agrees", "moved")
    for row in rows:
        table.add_row(row.name, f"{row.counted:g}", f"{row.exposed:g}", _mark(row.agrees), _mark(row.moved))
    return table


def _mark(good: bool) -> Text:  # noqa: FBT001 - the only argument
    return Text("yes", style="green") if good else Text("no", style="bold red")

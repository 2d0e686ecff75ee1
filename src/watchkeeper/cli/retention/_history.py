"""`retention history`: shows past runs from the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command, add_json, add_limit, add_tables
from watchkeeper.cli._screen import select_fields
from watchkeeper.cli._text import drop_subject, format_duration, format_rows

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import PastRun


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    runs = await keeper.retention.history(arguments.tables or None, limit=arguments.limit)
    if screen.json:
        screen.write_json([_document(run) for run in runs])
    elif screen.terminal:
        screen.write_table(
            "Retention runs",
            ("#Run", "Table", "Started", "#Took", "State", "#Rows", "Also"),
            [(*_cells(run, screen), _extras(run)) for run in runs],
        )
        for run in runs:
            if run.error is not None:
                error = drop_subject(run.table, run.error)
                screen.write_line(f"{run.table}: run {run.id} {run.state}: {error}")
    else:
        for run in runs:
            screen.write_line(_sentence(run, screen))
    return 0


HISTORY: Final = Command(
    name="history",
    help="show past runs, newest first",
    arguments=(add_tables, add_limit, add_json),
    execute=_execute,
)


def _cells(run: PastRun, screen: Screen) -> tuple[str, ...]:
    return (
        str(run.id),
        run.table,
        screen.format_time(run.started_at),
        _took(run),
        f"{run.state} ({run.trigger})",
        f"{run.deleted:,}",
    )


def _extras(run: PastRun) -> str:
    """Return what happened to partitions and archived rows."""
    extras = []
    if run.partitions:
        count = len(run.partitions)
        extras.append(f"{count:,} partition{'' if count == 1 else 's'} dropped")
    if run.archived:
        extras.append(f"{run.archived:,} archived")
    if run.restored:
        extras.append("restored" if run.restored == run.archived else f"{run.restored:,} restored")
    return ", ".join(extras)


def _took(run: PastRun) -> str:
    return "-" if run.finished_at is None else format_duration(run.finished_at - run.started_at)


def _sentence(run: PastRun, screen: Screen) -> str:
    took = "" if run.finished_at is None else f" in {_took(run)}"
    error = f": {drop_subject(run.table, run.error)}" if run.error else ""
    extras = f" ({_extras(run)})" if _extras(run) else ""
    return (
        f"run {run.id} on {run.table} ({run.trigger}, {screen.format_time(run.started_at)}) {run.state},"
        f" {format_rows(run.deleted)} deleted{extras}{took}{error}"
    )


def _document(run: PastRun) -> dict[str, object]:
    progress = ("started_at", "finished_at", "due", "attempt", "planned", "deleted", "partitions")
    return {
        "run": run.id,
        **select_fields(run, "table", "state", "trigger", *progress, "archived", "restored", "error"),
    }

"""`retention history`: what was run, as the ledger has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.cli._screen import Screen, duration, unnamed
from watchkeeper.cli.audit._list import limited

if TYPE_CHECKING:
    import argparse

    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import PastRun


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("history", help="the latest runs, the latest first")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="only these policies; default all")
    parser.add_argument("--limit", type=limited, default=20, metavar="N", help="how many; default 20")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=execute)


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Show the runs."""
    runs = await keeper.retention.history(arguments.tables or None, limit=arguments.limit)
    if screen.json:
        screen.document([_document(run) for run in runs])
    elif screen.terminal:
        screen.table(
            "Retention runs",
            ("#Run", "Table", "Started", "#Took", "State", "#Rows", "Besides"),
            [(*_cells(run, screen), _besides(run)) for run in runs],
        )
        for run in runs:
            if run.error is not None:
                error = unnamed(run.table, run.error)
                screen.say(f"{run.table}: run {run.id} {run.state}: {error}")
    else:
        for run in runs:
            screen.say(_sentence(run, screen))
    return 0


def _cells(run: PastRun, screen: Screen) -> tuple[str, ...]:
    return (
        str(run.id),
        run.table,
        screen.time(run.started_at),
        _took(run),
        f"{run.state} ({run.trigger})",
        f"{run.deleted:,}",
    )


def _besides(run: PastRun) -> str:
    """Return what else became of the rows."""
    told = []
    if run.partitions:
        told.append(f"{len(run.partitions):,} partitions dropped")
    if run.archived:
        told.append(f"{run.archived:,} archived")
    if run.restored:
        told.append("restored" if run.restored == run.archived else f"{run.restored:,} restored")
    return ", ".join(told)


def _took(run: PastRun) -> str:
    return "-" if run.finished_at is None else duration(run.finished_at - run.started_at)


def _sentence(run: PastRun, screen: Screen) -> str:
    took = "" if run.finished_at is None else f" in {_took(run)}"
    error = f": {unnamed(run.table, run.error)}" if run.error else ""
    besides = f" ({_besides(run)})" if _besides(run) else ""
    return (
        f"run {run.id} on {run.table} ({run.trigger}, {screen.time(run.started_at)}) {run.state},"
        f" {run.deleted:,} rows deleted{besides}{took}{error}"
    )


def _document(run: PastRun) -> dict[str, object]:
    return {
        "run": run.id,
        "table": run.table,
        "state": run.state,
        "trigger": run.trigger,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "due": run.due,
        "attempt": run.attempt,
        "planned": run.planned,
        "deleted": run.deleted,
        "partitions": run.partitions,
        "archived": run.archived,
        "restored": run.restored,
        "error": run.error,
    }

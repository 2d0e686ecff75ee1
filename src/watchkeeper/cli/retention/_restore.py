"""`retention restore`: restores the rows that a run deleted, from the archive."""

from __future__ import annotations

import shlex
from datetime import UTC
from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command, add_by, add_json, add_yes, require_yes
from watchkeeper.cli._screen import select_fields
from watchkeeper.cli._text import format_rows

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention.archive._restore import Restored


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=int, metavar="RUN", help="number of the run, from `history`")


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    require_yes(arguments, screen, "restore rows")
    operator = keeper.retention.operator
    found = await operator.archived(arguments.run)
    question = f"Restore {format_rows(found.rows)} of run {found.run} to {found.table}?"
    if found.rows and not arguments.yes and not await screen.ask(question):
        screen.write_line("Nothing was restored.")
        return 0
    with screen.progress({found.table: found.rows} if found.rows else {}) as bars:
        restored = await operator.restore(
            arguments.run,
            restored_by=arguments.by,
            on_rows=lambda rows: None if bars is None else bars.restored(found.table, rows),
        )
    if screen.json:
        screen.write_json(_document(restored))
    else:
        _show(restored, screen)
    return int(bool(restored.problems))


RESTORE: Final = Command(
    name="restore",
    help="restore the rows that a run deleted, from the archive",
    arguments=(_add_run, add_by, add_yes, add_json),
    execute=_execute,
)


def _show(restored: Restored, screen: Screen) -> None:
    found = restored.found
    present = f"; {restored.present:,} existed already" if restored.present else ""
    earlier = f"; {restored.earlier:,} were restored before" if restored.earlier else ""
    screen.write_line(
        f"{found.table}: restored {format_rows(restored.rows)} of run {found.run}{present}{earlier}"
    )
    for problem in restored.problems:
        screen.write_line(f"{found.table}: {problem}")
    if restored.rows or restored.present:
        condition = f'"{found.age_column}" < {found.horizon.astimezone(UTC).isoformat()}'
        screen.write_line(
            "Their age is unchanged, so the next run deletes them again. To keep them:"
            f" retention hold add {shlex.quote(found.table)} --where {shlex.quote(condition)}"
            f" --reason 'restored from run {found.run}'"
        )


def _document(restored: Restored) -> dict[str, object]:
    return {
        **select_fields(restored.found, "run", "table", "horizon"),
        "restored": restored.rows,
        **select_fields(restored, "present", "earlier", "problems"),
    }

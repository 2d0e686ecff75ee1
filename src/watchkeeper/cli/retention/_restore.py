"""`retention restore`: put back what a run deleted, from the archive."""

from __future__ import annotations

import shlex
from datetime import UTC
from typing import TYPE_CHECKING, Any

from watchkeeper.cli.retention._hold import whoever
from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention.archive._restore import Restored


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("restore", help="put back what a run deleted, from the archive")
    parser.add_argument("run", type=int, metavar="RUN", help="its number, as the history has it")
    parser.add_argument("--by", default=whoever(), help="who wants it; default: the account that asks")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=execute)


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Restore the run; 1 if not all of its rows are back."""
    if not arguments.yes and not screen.terminal:
        raise ConfigurationError("Without a terminal nobody can be asked: say --yes to put rows back.")
    operator = keeper.retention.operator
    found = await operator.archived(arguments.run)
    question = f"Put {found.rows:,} rows of run {found.run} back into {found.table}?"
    if found.rows and not arguments.yes and not await screen.ask(question):
        screen.say("Nothing was put back.")
        return 0
    with screen.progress({found.table: found.rows} if found.rows else {}) as bars:
        restored = await operator.restore(
            arguments.run,
            restored_by=arguments.by,
            on_rows=lambda rows: None if bars is None else bars.advance(found.table, rows),
        )
    if screen.json:
        screen.document(_document(restored))
    else:
        _show(restored, screen)
    return int(bool(restored.problems))


def _show(restored: Restored, screen: Screen) -> None:
    found = restored.found
    present = f", {restored.present:,} were there already" if restored.present else ""
    earlier = f", {restored.earlier:,} had come back before" if restored.earlier else ""
    screen.say(f"{found.table}: {restored.rows:,} rows of run {found.run} are back{present}{earlier}")
    for problem in restored.problems:
        screen.say(f"{found.table}: {problem}")
    if restored.rows or restored.present:
        condition = f'"{found.age_column}" < {found.horizon.astimezone(UTC).isoformat()}'
        screen.say(
            "They are as old as they were, and the next run deletes them again. To keep them:"
            f" retention hold add {shlex.quote(found.table)} --where {shlex.quote(condition)}"
            f" --reason 'restored from run {found.run}'"
        )


def _document(restored: Restored) -> dict[str, object]:
    return {
        "run": restored.found.run,
        "table": restored.found.table,
        "horizon": restored.found.horizon,
        "restored": restored.rows,
        "present": restored.present,
        "earlier": restored.earlier,
        "problems": restored.problems,
    }

"""What the commands share that stop and resume the runs of one policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchkeeper.cli._command import add_by, add_json, add_table

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen


def add_operator_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the policy, the operator's name, and the switch for JSON."""
    add_table(parser)
    add_by(parser)
    add_json(parser)


def show_operator_command(
    screen: Screen, arguments: argparse.Namespace, status: str, run: int | None, consequence: str
) -> None:
    """Show the new status of the policy or its current run, and what follows from it."""
    if screen.json:
        screen.write_json({"table": arguments.table, "status": status, "run": run, "by": arguments.by})
    else:
        screen.write_line(f"{arguments.table}: {status} by {arguments.by}; {consequence}")

"""`retention pause`: pauses a policy and stops its current run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command
from watchkeeper.cli.retention._operator_command import add_operator_arguments, show_operator_command

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    run = await keeper.retention.operator.pause(arguments.table, by=arguments.by)
    consequence = "no run starts until it is resumed"
    if run is not None:
        consequence = f"run {run} deletes nothing more, and {consequence}"
    show_operator_command(screen, arguments, "paused", run, consequence)
    return 0


PAUSE: Final = Command(
    name="pause",
    help="pause a policy and stop its current run",
    add_arguments=add_operator_arguments,
    execute=_execute,
)

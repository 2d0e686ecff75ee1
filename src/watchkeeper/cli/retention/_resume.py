"""`retention resume`: resumes a paused policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command
from watchkeeper.cli.retention._operator_command import add_operator_arguments, show_operator_command

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    run = await keeper.retention.operator.resume(arguments.table, by=arguments.by)
    consequence = "a scheduled run continues where it stopped; start a manual run again"
    if run is not None:
        consequence = f"run {run} continues"
    show_operator_command(screen, arguments, "resumed", run, consequence)
    return 0


RESUME: Final = Command(
    name="resume",
    help="resume a paused policy; its scheduled run continues where it stopped",
    add_arguments=add_operator_arguments,
    execute=_execute,
)

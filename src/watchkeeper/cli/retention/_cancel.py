"""`retention cancel`: cancels the current run of a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command
from watchkeeper.cli.retention._operator_command import add_operator_arguments, show_operator_command

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    run = await keeper.retention.operator.cancel(arguments.table, by=arguments.by)
    consequence = f"run {run} deletes nothing more; the next scheduled run deletes the rest"
    show_operator_command(screen, arguments, "cancelled", run, consequence)
    return 0


CANCEL: Final = Command(
    name="cancel",
    help="cancel the current run of a policy; the next scheduled run deletes the rest",
    add_arguments=add_operator_arguments,
    execute=_execute,
)

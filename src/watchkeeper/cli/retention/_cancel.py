"""`retention cancel`: the run that is going on ends for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.cli.retention._control import add_word, show_word

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    add_word(actions, "cancel", "end the run that is going on; the rest waits for the next due", execute)


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Say the word, and what comes of it."""
    run = await keeper.retention.operator.cancel(arguments.table, by=arguments.by)
    rest = f"nothing more of run {run} goes, and the rest waits for the next due"
    show_word(screen, arguments, "cancelled", run, rest)
    return 0

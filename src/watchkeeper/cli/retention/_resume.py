"""`retention resume`: runs of a policy begin again, from where the last one stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.cli.retention._control import add_word, show_word

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    add_word(actions, "resume", "let runs of a policy begin again, from where the last one stopped", execute)


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Say the word, and what comes of it."""
    run = await keeper.retention.operator.resume(arguments.table, by=arguments.by)
    # A run by hand has nobody who would start it again.
    rest = "what is due goes on from where it stopped; what was run by hand is to be run again"
    if run is not None:
        rest = f"run {run} goes on"
    show_word(screen, arguments, "resumed", run, rest)
    return 0

"""`retention pause`: no run of a policy begins, and the one that is going on stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.cli.retention._control import add_word, show_word

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    add_word(
        actions, "pause", "let no run of a policy begin, and have the one that is going on stop", execute
    )


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Say the word, and what comes of it."""
    run = await keeper.retention.operator.pause(arguments.table, by=arguments.by)
    rest = "no run begins" if run is None else f"nothing more of run {run} goes, and no other begins"
    show_word(screen, arguments, "paused", run, rest)
    return 0

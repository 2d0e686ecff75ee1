"""`db migrate`: bring the database up to the code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.cli.db._pg_tools import database_service

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("migrate", help="bring the database up to the code; serve does it by itself")
    parser.set_defaults(execute=execute, migrate=False)


async def execute(keeper: Watchkeeper, _arguments: argparse.Namespace, screen: Screen) -> int:
    """Apply what is missing, and say what that was."""
    applied = await database_service(keeper).migrate()
    for name in applied:
        screen.say(f"applied {name}")
    if not applied:
        screen.say("Nothing to apply: the database is up to date.")
    return 0

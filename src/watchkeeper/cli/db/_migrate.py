"""`db migrate`: applies pending migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command
from watchkeeper.cli.db._pg_tools import database_service

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


async def _execute(keeper: Watchkeeper, _arguments: argparse.Namespace, screen: Screen) -> int:
    applied = await database_service(keeper).migrate()
    for name in applied:
        screen.write_line(f"applied {name}")
    if not applied:
        screen.write_line("Nothing to apply: the database is up to date.")
    return 0


MIGRATE: Final = Command(
    name="migrate",
    help="apply pending migrations, as the service does when it starts",
    execute=_execute,
    migrate=False,
)

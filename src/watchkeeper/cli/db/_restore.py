"""`db restore`: bring a backup back, in place of what the database holds."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watchkeeper.audit import append
from watchkeeper.cli.db._pg_restore import replace_database
from watchkeeper.cli.db._pg_tools import (
    database_name,
    database_service,
    find_program,
    run_program,
    server_major,
)
from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("restore", help="bring a backup back, in place of what the database holds")
    parser.add_argument("file", metavar="FILE", type=Path, help="what db dump wrote")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal")
    parser.set_defaults(execute=execute, migrate=False)


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Restore in one transaction, then migrate; stop the service first."""
    file = _existing(arguments.file)
    if not arguments.yes and not screen.terminal:
        raise ConfigurationError("Without a terminal nobody can be asked: say --yes to replace the database.")
    service = database_service(keeper)
    name = database_name(service.owner_url)
    pg_restore = await find_program(keeper, "pg_restore")
    psql = await find_program(keeper, "psql")
    await run_program(pg_restore, "--list", str(file))  # is it a backup at all?
    question = f"Replace everything in the database {name} by {file}?"
    if not arguments.yes and not await screen.ask(question):
        screen.say("Nothing was changed.")
        return 0
    server = await server_major(keeper)
    await replace_database(psql, pg_restore, file, url=service.owner_url, server=server)
    applied = await service.migrate()
    async with service.database.transaction() as conn:
        await append(
            conn,
            actor_type="user",
            actor_id=_user(),
            action="database.restore",
            entity=name,
            payload={"file": file.name, "applied": applied},
        )
    screen.say(f"{name}: restored from {file}")
    for migration in applied:
        screen.say(f"applied {migration}")
    return 0


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ConfigurationError(f"There is no file {file}.")
    return file


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"

"""`db restore`: replaces the database with a backup."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from watchkeeper.audit import append
from watchkeeper.cli._command import Command, account_name, add_yes, require_yes
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


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a backup that `db dump` wrote")


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    file = _check_file(arguments.file)
    require_yes(arguments, screen, "replace the database")
    service = database_service(keeper)
    name = database_name(service.owner_url)
    pg_restore = await find_program(keeper, "pg_restore")
    psql = await find_program(keeper, "psql")
    await run_program(pg_restore, "--list", str(file))  # fails if it is not a backup
    question = f"Replace everything in the database {name} by {file}?"
    if not arguments.yes and not await screen.ask(question):
        screen.write_line("Nothing was changed.")
        return 0
    server = await server_major(keeper)
    await replace_database(psql, pg_restore, file, url=service.owner_url, server=server)
    applied = await service.migrate()
    async with service.database.transaction() as conn:
        await append(
            conn,
            actor_type="user",
            actor_id=account_name(),
            action="database.restore",
            entity=name,
            payload={"file": file.name, "applied": applied},
        )
    screen.write_line(f"{name}: restored from {file}")
    for migration in applied:
        screen.write_line(f"applied {migration}")
    return 0


RESTORE_DATABASE: Final = Command(
    name="restore",
    help="replace the database with a backup, then migrate it; stop the service first",
    arguments=(_add_file, add_yes),
    execute=_execute,
    migrate=False,
)


def _check_file(file: Path) -> Path:
    if not file.is_file():
        raise ConfigurationError(f"There is no file {file}.")
    return file

"""`db dump`: a backup of the whole database in one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watchkeeper.cli.db._pg_tools import database_service, find_program, run_program
from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("dump", help="write a backup of the whole database into one file")
    parser.add_argument("file", metavar="FILE", type=Path, help="a new file (pg_dump's custom format)")
    parser.set_defaults(execute=execute, migrate=False)


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Write the backup; the service may go on meanwhile."""
    file: Path = arguments.file
    program = await find_program(keeper, "pg_dump")
    part = _new_file(file)
    try:
        await run_program(
            program, "--format=custom", "--file", str(part), url=database_service(keeper).owner_url
        )
        size = part.stat().st_size
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
    screen.say(f"{file}: {size:,} bytes")
    return 0


def _new_file(file: Path) -> Path:
    """Make the file that the backup grows in: nobody else can read it, from its first byte on."""
    if file.exists():
        raise ConfigurationError(f"{file} exists already: name a new file.")
    part = file.with_name(f"{file.name}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}.") from error
    return part

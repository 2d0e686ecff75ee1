"""`db dump`: writes a backup of the whole database to one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command
from watchkeeper.cli.db._pg_tools import database_service, find_program, run_program
from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a new file (pg_dump's custom format)")


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    file: Path = arguments.file
    program = await find_program(keeper, "pg_dump")
    part = _create_part(file)
    try:
        await run_program(
            program, "--format=custom", "--file", str(part), url=database_service(keeper).owner_url
        )
        size = part.stat().st_size
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
    screen.write_line(f"{file}: {size:,} bytes")
    return 0


DUMP: Final = Command(
    name="dump",
    help="write a backup of the whole database to a file; the service may keep running",
    arguments=(_add_file,),
    execute=_execute,
    migrate=False,
)


def _create_part(file: Path) -> Path:
    """Create the file that the backup is written to, readable by its owner only from the first byte on."""
    if file.exists():
        raise ConfigurationError(f"{file} exists already: name a new file.")
    part = file.with_name(f"{file.name}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}.") from error
    return part

"""PostgreSQL's own programs for backup and restore: found, checked against the server's version, and run."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from psycopg.pq import Conninfo

from watchkeeper.exceptions import ConfigurationError, WatchkeeperError

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from watchkeeper.database._service import DatabaseService
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.settings import Secret

_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")
_MOST_WORDS: Final = 60


def database_service(keeper: Watchkeeper) -> DatabaseService:
    """Return the service's database; raise ConfigurationError if it has none."""
    if keeper.database_service is None:
        raise ConfigurationError("This service has no database.")
    return keeper.database_service


async def server_major(keeper: Watchkeeper) -> int:
    """Return the server's major version."""
    async with database_service(keeper).database.connection() as conn:
        return conn.info.server_version // 10_000


async def find_program(keeper: Watchkeeper, name: str) -> Path:
    """Return the path of a program such as pg_dump: the embedded server's own, else the one on the PATH."""
    service = database_service(keeper)
    server = await server_major(keeper)
    found = shutil.which(name, path=service.server.bin_dir if service.server else None)
    package = f"install PostgreSQL's client programs of version {server} (Debian: postgresql-client-{server})"
    if found is None:
        raise WatchkeeperError(f"There is no {name} on the PATH: {package}.")
    version = _VERSION.search(await run_program(Path(found), "--version"))
    if version is None or int(version[1]) < server:
        which = f"version {version[1]}" if version else "an unknown version"
        raise WatchkeeperError(f"{found} has {which}, and the server has version {server}: {package}.")
    return Path(found)


async def run_program(program: Path, *arguments: str, url: Secret | None = None) -> str:
    """Run a program and return its output; raise WatchkeeperError with the end of its stderr if it fails.

    Every account can see the arguments: `url`, the database to connect to, goes into the environment.
    """
    process = await start_program(program, *arguments, url=url)
    try:
        output, errors = await process.communicate()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):  # it received Ctrl-C too
            process.terminate()
        await process.wait()
        raise
    if process.returncode:
        raise WatchkeeperError(
            f"{program.name} failed (exit code {process.returncode}): {last_words(errors)}"
        )
    return output.decode(errors="replace")


async def start_program(
    program: Path, *arguments: str | Path, url: Secret | None, stdin: int = DEVNULL, stdout: int = PIPE
) -> Process:
    """Start a program whose stderr is piped, with `url` in its environment."""
    return await asyncio.create_subprocess_exec(
        program, *arguments, stdin=stdin, stdout=stdout, stderr=PIPE, env=_environment(url)
    )


def last_words(errors: bytes) -> str:
    """Return the end of a program's stderr on one line."""
    return " ".join(errors.decode(errors="replace").split()[-_MOST_WORDS:])


def database_name(url: Secret) -> str:
    """Return the name of the database in a connection string."""
    return _parameters(url).get("PGDATABASE") or _parameters(url).get("PGUSER", "")


def _environment(url: Secret | None) -> dict[str, str]:
    """Return a program's environment, with the database to connect to in place of our own PG variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**inherited, "LC_ALL": "C.UTF-8", **(_parameters(url) if url is not None else {})}


def _parameters(url: Secret) -> dict[str, str]:
    """Return a connection string as libpq's environment variables, without options that have none."""
    return {
        option.envvar.decode(): option.val.decode()
        for option in Conninfo.parse(url.reveal().encode())
        if option.envvar is not None and option.val is not None
    }

"""Brings a backup back into an emptied database, in one transaction: all of it, or nothing.

`pg_restore` alone cannot: it removes what the backup has, and leaves what came after it. So its script goes
to `psql`, behind our own BEGIN and what empties the database; COMMIT follows only if the script was whole.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from watchkeeper.cli.db._pg_tools import environment, last_words
from watchkeeper.database import Queries
from watchkeeper.exceptions import WatchkeeperError

if TYPE_CHECKING:
    from pathlib import Path

    from watchkeeper.settings import Secret

_QUERIES: Final = Queries.load("watchkeeper.cli.db", "operator")
_PIECE: Final = 1 << 16
# The script of pg_restore 17 and newer sets it, and older servers do not know it.
_UNKNOWN_BEFORE_17: Final = b"SET transaction_timeout"
_SEVENTEEN: Final = 17
_HEADER: Final = (b"--", b"SET ", b"SELECT pg_catalog.set_config(", b"\\restrict", b"\n")
# A service that still runs holds locks: that is told, and not waited for.
_BEGIN: Final = "BEGIN;\nSET LOCAL lock_timeout = '5s';\n"


async def replace_database(psql: Path, pg_restore: Path, file: Path, *, url: Secret, server: int) -> None:
    """Replace everything in a database by a backup.

    Args:
        psql: The program.
        pg_restore: The program.
        file: The backup.
        url: The database, as the owner of its tables.
        server: The server's major version.

    Raises:
        WatchkeeperError: It failed, and nothing was changed.
    """
    reader = await asyncio.create_subprocess_exec(
        pg_restore,
        "--no-owner",
        "--no-privileges",
        "--file=-",
        file,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(None),
    )
    writer = await asyncio.create_subprocess_exec(
        psql,
        "--no-psqlrc",
        "--quiet",
        "--set=ON_ERROR_STOP=1",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment(url),
    )
    try:
        words = await asyncio.gather(
            _rest(reader.stderr), _rest(writer.stderr), _pass_on(reader, writer, server)
        )
        await asyncio.gather(reader.wait(), writer.wait())
    finally:
        for process in (reader, writer):
            if process.returncode is None:
                process.kill()
                await process.wait()
    for name, process, said in (("psql", writer, words[1]), ("pg_restore", reader, words[0])):
        if process.returncode:
            raise WatchkeeperError(f"Nothing was changed, because {name} failed: {last_words(said)}")


async def _pass_on(
    reader: asyncio.subprocess.Process, writer: asyncio.subprocess.Process, server: int
) -> None:
    """Hand the script over, and commit it if it was whole; otherwise the end of the input rolls it back."""
    assert reader.stdout is not None  # noqa: S101 - it was asked for
    assert writer.stdin is not None  # noqa: S101 - the same
    try:
        writer.stdin.write(f"{_BEGIN}{_QUERIES['wipe']};\n".encode())
        while (line := await reader.stdout.readline()).startswith(_HEADER):
            if server >= _SEVENTEEN or not line.startswith(_UNKNOWN_BEFORE_17):
                writer.stdin.write(line)
        piece = line
        while piece:
            writer.stdin.write(piece)
            await writer.stdin.drain()
            piece = await reader.stdout.read(_PIECE)
        if await reader.wait() == 0:
            writer.stdin.write(b"COMMIT;\n")
        writer.stdin.close()
        await writer.stdin.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        reader.kill()  # psql has stopped at an error, and says which


async def _rest(stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None  # noqa: S101 - it was asked for
    return await stream.read()

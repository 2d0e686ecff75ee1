"""Replaces the database with a backup in one transaction.

`pg_restore` alone would leave what was created later. So its script goes to `psql`, after BEGIN and a query
that empties the database; COMMIT follows only if pg_restore succeeded.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Final

from watchkeeper.cli.db._pg_tools import last_words, start_program
from watchkeeper.database import Queries
from watchkeeper.exceptions import WatchkeeperError

if TYPE_CHECKING:
    from pathlib import Path

    from watchkeeper.settings import Secret

_QUERIES: Final = Queries.load("watchkeeper.cli.db", "operator")
_CHUNK: Final = 1 << 16
# pg_restore 17 and newer set it; older servers do not know it.
_UNKNOWN_BEFORE_17: Final = b"SET transaction_timeout"
_SEVENTEEN: Final = 17
_HEADER: Final = (b"--", b"SET ", b"SELECT pg_catalog.set_config(", b"\\restrict", b"\n")
# A service that still runs holds locks: fail instead of waiting for them.
_BEGIN: Final = "BEGIN;\nSET LOCAL lock_timeout = '5s';\n"


async def replace_database(psql: Path, pg_restore: Path, file: Path, *, url: Secret, server: int) -> None:
    """Replace everything in a database with a backup; raise WatchkeeperError if nothing was changed."""
    reader = await start_program(pg_restore, "--no-owner", "--no-privileges", "--file=-", file, url=None)
    writer = await start_program(
        psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", url=url, stdin=PIPE, stdout=DEVNULL
    )
    try:
        reader_errors, writer_errors, _ = await asyncio.gather(
            _read_all(reader.stderr), _read_all(writer.stderr), _copy(reader, writer, server)
        )
        await asyncio.gather(reader.wait(), writer.wait())
    finally:
        for process in (reader, writer):
            if process.returncode is None:
                process.kill()
                await process.wait()
    for name, process, errors in (("psql", writer, writer_errors), ("pg_restore", reader, reader_errors)):
        if process.returncode:
            raise WatchkeeperError(f"Nothing was changed, because {name} failed: {last_words(errors)}")


async def _copy(reader: asyncio.subprocess.Process, writer: asyncio.subprocess.Process, server: int) -> None:
    """Copy the script and commit it if pg_restore succeeded; otherwise the end of the input rolls it back."""
    assert reader.stdout is not None  # noqa: S101 - it is a pipe
    assert writer.stdin is not None  # noqa: S101 - it is a pipe
    try:
        writer.stdin.write(f"{_BEGIN}{_QUERIES['wipe']};\n".encode())
        while (line := await reader.stdout.readline()).startswith(_HEADER):
            if server >= _SEVENTEEN or not line.startswith(_UNKNOWN_BEFORE_17):
                writer.stdin.write(line)
        chunk = line
        while chunk:
            writer.stdin.write(chunk)
            await writer.stdin.drain()
            chunk = await reader.stdout.read(_CHUNK)
        if await reader.wait() == 0:
            writer.stdin.write(b"COMMIT;\n")
        writer.stdin.close()
        await writer.stdin.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        reader.kill()  # psql has stopped at an error, which is in its stderr


async def _read_all(stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None  # noqa: S101 - it is a pipe
    return await stream.read()

"""A segment: rows as lines of JSON, in a gzip member with its checksum."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.exceptions import ArchiveError
from watchkeeper.retention._queries import QUERIES, fetch_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import AsyncConnection

_GZIP: Final = 31  # the largest window, in the format of gzip
_AT_ONCE: Final = 256
_LEVEL: Final = 3  # level 6 takes three times as long, for a tenth less


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A segment to be stored.

    Args:
        data: A gzip member.
        sha256: Its checksum.
    """

    data: bytes
    sha256: str


def pack(lines: Sequence[str]) -> Packed:
    """Make a segment.

    Args:
        lines: One for each row, without its end.
    """
    compressing = zlib.compressobj(level=_LEVEL, wbits=_GZIP)
    # In pieces: while one of them is encoded, nothing else in the process goes on.
    data = b"".join(
        compressing.compress(("\n".join(lines[at : at + _AT_ONCE]) + "\n").encode())
        for at in range(0, len(lines), _AT_ONCE)
    )
    data += compressing.flush()
    return Packed(data=data, sha256=hashlib.sha256(data).hexdigest())


def unpack(data: bytes, *, sha256: str, rows: int) -> list[str]:
    """Return the lines of a segment.

    Args:
        data: As the archive has it.
        sha256: The checksum that it had.
        rows: How many lines it had.

    Raises:
        ArchiveError: It is not what was written.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArchiveError("its checksum is not the ledger's")
    try:
        lines = gzip.decompress(data).decode().split("\n")[:-1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ArchiveError(f"it is no compressed text ({error})") from error
    if len(lines) != rows:
        raise ArchiveError(f"it has {len(lines):,} rows, and the ledger says {rows:,}")
    return lines


async def read_totals(conn: AsyncConnection[Any], run: int) -> dict[str, object]:
    """Return how many rows of a run are in the archive and gone, and where; nothing if none are.

    Args:
        conn: Any connection.
        run: Its number.
    """
    rows, files, place = await fetch_row(conn, QUERIES["archived"], {"run": run})
    return {"rows": rows, "files": files, "place": place} if rows else {}

"""A segment: rows as lines of JSON, in a gzip member with a checksum."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Sequence

_GZIP: Final = 31  # the largest window, in the gzip format
_LINES_AT_ONCE: Final = 256
_LEVEL: Final = 3  # level 6 takes three times as long and saves 10 %


def pack(lines: Sequence[str]) -> tuple[bytes, str]:
    """Compress the lines of a segment, which have no line ends; return the bytes and their checksum."""
    compressor = zlib.compressobj(level=_LEVEL, wbits=_GZIP)
    # In pieces: encoding one piece blocks all other threads of the process.
    data = b"".join(
        compressor.compress(("\n".join(lines[at : at + _LINES_AT_ONCE]) + "\n").encode())
        for at in range(0, len(lines), _LINES_AT_ONCE)
    )
    data += compressor.flush()
    return data, hashlib.sha256(data).hexdigest()


def unpack(data: bytes, *, sha256: str, rows: int) -> list[str]:
    """Return the lines of a segment; raise ArchiveError if it differs from what the ledger says."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArchiveError("its checksum differs from the ledger's")
    try:
        lines = gzip.decompress(data).decode().split("\n")[:-1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ArchiveError(f"it is not compressed text ({error})") from error
    if len(lines) != rows:
        raise ArchiveError(f"it has {len(lines):,} rows, and the ledger says {rows:,}")
    return lines

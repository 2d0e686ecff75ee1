"""The interface of an archive: it stores the bytes of segments, which only the ledger can interpret.

A segment holds the rows of one batch: a gzip member whose lines are JSON objects of column and text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from watchkeeper.retention._policy import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a segment is stored.

    Args:
        place: The object or file that contains it, as the archive that wrote it finds it again: a URL.
        start: Offset of its first byte.
        length: Its length in bytes.
    """

    place: str
    start: int
    length: int


class Archive(Protocol):
    """Stores segments, in a folder or an object store."""

    async def write(self, table: str, run: int, data: bytes) -> Location:
        """Store a segment durably: it survives a crash of this machine. If that fails, none of it is kept.

        Args:
            table: The policy's name.
            run: The run's number.
            data: The segment.

        Raises:
            ArchiveError: It cannot be stored now; the message says how to fix that.
        """

    async def read(self, location: Location) -> bytes:
        """Return a segment's bytes as they are now; the caller checks whether they are what was written.

        Args:
            location: Where it is stored.

        Raises:
            ArchiveError: There are not that many bytes; the message says where they were expected.
        """


def check_archive(policies: Iterable[Policy], archive: Archive | None) -> None:
    """Raise ConfigurationError if a policy archives its rows but there is no archive."""
    for policy in policies:
        if policy.archive and archive is None:
            raise ConfigurationError(
                f"The policy on {policy.name} archives its rows: say where, by the argument archive."
            )

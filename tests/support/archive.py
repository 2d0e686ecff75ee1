"""The contents of the archive, and actions between archive and delete."""

import dataclasses
import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from support.retention import EVENTS, RetentionDB
from watchkeeper.retention import FolderArchive, Location

ARCHIVED: Final = dataclasses.replace(EVENTS, archive=True)


class HookedArchive(FolderArchive):
    """An archive that calls `action` after the segment with this number, before its rows are deleted."""

    def __init__(self, folder: Path, action: Callable[[], object], *, segment: int = 1) -> None:
        super().__init__(folder)
        self._action = action
        self._left = segment

    async def write(self, table: str, run: int, data: bytes) -> Location:
        """Store a segment, and call the action after the chosen one."""
        location = await super().write(table, run, data)
        self._left -= 1
        if not self._left:
            self._action()
        return location


def file_of(place: str) -> Path:
    """Return the file of a location in the ledger."""
    return Path(unquote(urlsplit(place).path))


def archived(db: RetentionDB) -> list[dict[str, Any]]:
    """Return the rows that are archived and deleted according to the ledger, with checksums compared."""
    rows: list[dict[str, Any]] = []
    for place, start, length, sha256, count, deleted, kept in db.sql(
        "SELECT place, start, length, sha256, rows, deleted, kept FROM retention_archives ORDER BY id"
    ):
        data = file_of(place).read_bytes()[start : start + length]
        assert hashlib.sha256(data).hexdigest() == sha256
        lines = gzip.decompress(data).decode().split("\n")[:-1]
        assert len(lines) == count
        if deleted is not None:
            gone = [json.loads(line) for at, line in enumerate(lines) if at not in (kept or [])]
            assert len(gone) == deleted
            rows += gone
    return rows


def difference(db: RetentionDB, table: str, copy: str) -> list[tuple[Any, ...]]:
    """Return the rows that only one of two tables has, as text."""
    rows = "(SELECT t::text FROM {} t EXCEPT ALL SELECT t::text FROM {} t)"
    return db.sql(f"{rows.format(table, copy)} UNION ALL {rows.format(copy, table)}")

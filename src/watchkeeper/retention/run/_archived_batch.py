"""A batch of a policy that archives: its rows are read, written to the archive, and only then deleted.

The segment is recorded in the ledger before the second transaction, which deletes exactly the row versions
that were read: rows that have changed are archived again by a later pass.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.archive._segment import pack
from watchkeeper.retention.run._batch import AgeRange, BatchResult, BlockRange, Range
from watchkeeper.retention.table._columns import archive_placeholders, read_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention.archive._archive import Archive
    from watchkeeper.retention.run._context import Run
    from watchkeeper.retention.run._lease import Lease
    from watchkeeper.retention.run._transactions import Transactions
    from watchkeeper.retention.table._target import Target

# Rows fetched at once; those that are wider than `_WIDE` are fetched one by one.
_FETCHED: Final = 256
_WIDE: Final = 64 << 10
# Rows that could not be deleted are skipped in the remaining range, up to this many.
_MAX_SKIPPED: Final = 10_000


@dataclass(kw_only=True, slots=True)
class Rows:
    """Row versions that were read, and their archived lines."""

    parts: list[str] = field(default_factory=list)  # the table that each lies in
    places: list[str] = field(default_factory=list)  # ctid, as element of an array
    versions: list[str] = field(default_factory=list)  # xmin
    ages: list[str | None] = field(default_factory=list)  # only for an age range
    lines: list[str] = field(default_factory=list)
    # The file of each table: one that was rewritten has other rows in the same places.
    files: dict[str, str] = field(default_factory=dict)
    more: bool = False  # whether the range has more rows than were read
    took: timedelta = timedelta(0)  # how long reading them took

    def parameters(self, which: Sequence[int] | None = None) -> dict[str, object]:
        """Return the versions at these positions, or all, as arrays."""
        chosen = [self.parts, self.places, self.versions]
        if which is not None:
            chosen = [[texts[at] for at in which] for texts in chosen]
        parts, places, versions = chosen
        return {
            "rows": len(parts),
            "parts": _array(parts),
            "places": _array(places),
            "versions": _array(versions),
            "tables": _array(self.files),
            "files": _array(self.files.values()),
        }


class Archiver:
    """Writes the rows of one run to the archive, batch by batch."""

    def __init__(self, run: Run, archive: Archive, lease: Lease, transactions: Transactions) -> None:
        self._run = run
        self._archive = archive
        self._lease = lease
        self._transactions = transactions

    async def take(self, target: Target, range_: Range, size: int) -> ArchivedBatch:
        """Archive the next rows of a range; raises ArchiveError if they cannot be written."""
        began = time.monotonic()
        async with self._transactions.open() as conn:
            rows = await self._read(conn, await target.with_holds(conn), range_, size)
        rows.took = timedelta(seconds=time.monotonic() - began)
        segment = await self._write(rows.lines) if rows.lines else None
        rows.lines = []
        return ArchivedBatch(rows=rows, segment=segment, range_=range_, size=size)

    async def _read(self, conn: AsyncConnection[Any], target: Target, range_: Range, size: int) -> Rows:
        tuning = self._run.tuning
        began = time.monotonic()
        await conn.execute(QUERIES["text_format"])
        await conn.execute(target.fill(QUERIES["lock_table"]), {})
        parts = archive_placeholders(await read_columns(conn, target.oid))
        within: dict[str, object] = {
            "horizon": self._run.claim.horizon,
            "wide": _WIDE,
            "skipped_parts": _array(part for part, _ in range_.skip),
            "skipped_places": _array(place for _, place in range_.skip),
        }
        if isinstance(range_, AgeRange):
            query = "read_ages"
            within |= {"start": range_.start, "stop": range_.stop, "size": min(size, tuning.segment_rows)}
        else:
            query = "read_blocks"
            within |= range_.cut(size)[0].parameters()
        rows, seen, width = Rows(), 0, 0
        async with conn.cursor(name="watchkeeper_rows") as cursor:
            await cursor.execute(target.fill(QUERIES[query], **parts), within)
            while fetched := await cursor.fetchmany(_FETCHED):
                seen += len(fetched)
                for part, place, version, age, narrow in fetched:
                    line = narrow
                    if line is None:
                        of = {"part": part, "place": place, "version": version}
                        wide = await conn.execute(target.fill(QUERIES["read_row"], **parts), of)
                        (line,) = await wide.fetchone() or (None,)
                    if line is None:  # it has changed
                        continue
                    rows.parts.append(part)
                    rows.places.append(f'"{place}"')
                    rows.versions.append(version)
                    rows.ages.append(age)
                    rows.lines.append(line)
                    width += len(line)
                    if width >= tuning.segment_bytes:
                        rows.more = True
                        break
                if rows.more or len(fetched) < _FETCHED:
                    break
                if (
                    len(rows.lines) >= tuning.segment_rows
                    or time.monotonic() - began > tuning.segment_read_time.total_seconds()
                ):
                    rows.more = True
                    break
        rows.more = rows.more or (isinstance(range_, AgeRange) and seen >= min(size, tuning.segment_rows))
        found = await conn.execute(QUERIES["table_files"], {"tables": _array(set(rows.parts))})
        rows.files = dict(await found.fetchall())
        return rows

    async def _write(self, lines: list[str]) -> int:
        data, sha256 = await asyncio.to_thread(pack, lines)
        writing = self._archive.write(self._run.claim.table_name, self._run.claim.id, data)
        location = await self._lease.keep_alive(writing)
        async with self._transactions.open() as conn:
            await self._run.ledger.lock(conn, self._run.claim)
            (segment,) = await fetch_row(
                conn,
                QUERIES["record_segment"],
                {
                    "run": self._run.claim.id,
                    "place": location.place,
                    "start": location.start,
                    "length": location.length,
                    "sha256": sha256,
                    "rows": len(lines),
                },
            )
            await self._run.ledger.record_deleted(conn, self._run.claim, 0)
        return int(segment)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedBatch:
    """Rows that are in the archive and in the ledger, to be deleted."""

    rows: Rows
    segment: int | None  # its number in the ledger; None without rows
    range_: Range
    size: int

    async def delete(
        self, conn: AsyncConnection[Any], target: Target, horizon: datetime, _range: Range, _size: int
    ) -> BatchResult:
        """Delete the rows that are unchanged; raises LockNotAvailable where one is locked."""
        kept: list[int] = []
        if self.rows.places:
            parameters = {"horizon": horizon, **self.rows.parameters()}
            (kept,) = await fetch_row(conn, target.fill(QUERIES["delete_archived"]), parameters)
        available = len(self.rows.places) - len(kept)
        if kept:  # changed, or kept by a trigger: find out which
            more, kept = await self._delete_free(conn, target, horizon, kept)
            available += more
        return await self._note(conn, available=available, kept=kept)

    async def delete_skip_locked(
        self, conn: AsyncConnection[Any], target: Target, horizon: datetime, _range: Range, _size: int
    ) -> BatchResult:
        """Delete the rows that are unchanged and that no other transaction has locked."""
        available, kept = await self._delete_free(conn, target, horizon, list(range(len(self.rows.places))))
        return await self._note(conn, available=available, kept=kept)

    async def _delete_free(
        self, conn: AsyncConnection[Any], target: Target, horizon: datetime, which: list[int]
    ) -> tuple[int, list[int]]:
        """Return how many were not locked by others, and the positions of those that are still there."""
        if not which:
            return 0, []
        parameters = {"horizon": horizon, **self.rows.parameters(which)}
        available, kept = await fetch_row(
            conn, target.fill(QUERIES["delete_archived_skip_locked"]), parameters
        )
        return available, [which[at] for at in kept]

    async def _note(self, conn: AsyncConnection[Any], *, available: int, kept: list[int]) -> BatchResult:
        eligible = len(self.rows.places)
        if self.segment is not None:
            noted = {"segment": self.segment, "deleted": eligible - len(kept), "kept": kept or None}
            await conn.execute(QUERIES["record_segment_deleted"], noted)
        covered, rest = self._divide(kept)
        return BatchResult(
            eligible=eligible, available=available, deleted=eligible - len(kept), covered=covered, rest=rest
        )

    def _divide(self, kept: list[int]) -> tuple[Range, Range | None]:
        """Return the part of the range that was covered, and the remainder."""
        rows, range_ = self.rows, self.range_
        if isinstance(range_, BlockRange):
            blocks, others = range_.cut(self.size)
            skip = range_.skip + tuple((rows.parts[at], rows.places[at]) for at in kept)
            if rows.more and len(skip) <= _MAX_SKIPPED:
                return blocks, replace(range_, skip=skip)
            return blocks, others
        newest = rows.ages[-1] if rows.ages else None
        if newest is None or not rows.more:
            return replace(range_, skip=()), None
        skip = range_.skip if newest == range_.start else ()
        skip += tuple((rows.parts[at], rows.places[at]) for at in kept if rows.ages[at] == newest)
        covered = AgeRange(start=range_.start, stop=newest)
        if len(skip) > _MAX_SKIPPED:  # only rows with one timestamp that cannot be deleted
            return replace(range_, skip=()), None
        return covered, AgeRange(start=newest, stop=range_.stop, skip=skip)


def _array(texts: Iterable[str]) -> str:
    return f"{{{','.join(texts)}}}"

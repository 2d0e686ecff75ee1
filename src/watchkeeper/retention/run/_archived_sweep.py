"""A sweep of a policy that archives: its rows are read, written away, and only then deleted.

Reading and deleting are transactions of their own; the file is written between them, and named in the ledger
before the second one begins. That one deletes exactly those versions of rows that were read, as far as they
are still there and still eligible: what changed meanwhile is archived anew by a later pass.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.archive._segment import pack
from watchkeeper.retention.run._sweep import AgeSpan, BlockSpan, Span, Swept, cut, places
from watchkeeper.retention.table._columns import read_columns, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention.archive._archive import Archive
    from watchkeeper.retention.ledger._ledger import Claim, Ledger
    from watchkeeper.retention.run._throttle import Patience
    from watchkeeper.retention.table._target import Target

# What one segment holds at most, whatever the rows are like: memory, and time of the transaction that reads.
MOST_ROWS: Final = 10_000
MOST_BYTES: Final = 8 << 20
LONGEST_READ: Final = timedelta(milliseconds=75)

# So many rows come with each answer, but for those that are wider than this: they come one by one.
_FETCHED: Final = 256
_WIDE: Final = 64 << 10
# Rows that could not be deleted are passed over in what is left of their span: so many of them at most.
_MOST_SKIPPED: Final = 10_000


@dataclass(kw_only=True, slots=True)
class Rows:
    """Rows that were read: their lines, and which versions they are.

    Args:
        parts: The tables that they lie in.
        places: Where, as elements of an array.
        versions: Which transaction made each of them.
        ages: How old they are; only where they are gone over by age.
        lines: What is archived.
        files: For each table its file: a table that was written anew has other rows in the same places.
        more: Whether there are more than were read.
        took: How long it took to read them.
    """

    parts: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    ages: list[str | None] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    more: bool = False
    took: timedelta = timedelta(0)

    def parameters(self, which: Sequence[int] | None = None) -> dict[str, object]:
        """Return the versions at these positions, or all, as arrays: quickly, for others wait."""
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
    """Writes the rows of one run away, sweep by sweep.

    Args:
        archive: Where to.
        ledger: Where the segments are noted.
        claim: The run.
        transaction: Opens a transaction of the run.
        patience: Keeps the run's lease while the archive takes its time.
    """

    def __init__(
        self,
        archive: Archive,
        ledger: Ledger,
        claim: Claim,
        transaction: Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]],
        patience: Patience,
    ) -> None:
        self._archive = archive
        self._ledger = ledger
        self._claim = claim
        self._transaction = transaction
        self._patience = patience

    async def take(self, target: Target, span: Span, size: int) -> ArchivedSweep:
        """Archive the next rows of a span.

        Args:
            target: The table.
            span: Where to look.
            size: How many rows, or blocks, to take on, about.

        Raises:
            ArchiveError: They cannot be written away.
            RunLostError: The run is not ours any more.
        """
        began = time.monotonic()
        async with self._transaction() as conn:
            rows = await self._read(conn, await target.with_holds(conn), span, size)
        rows.took = timedelta(seconds=time.monotonic() - began)
        segment = await self._keep(rows.lines) if rows.lines else None
        rows.lines = []
        return ArchivedSweep(rows=rows, segment=segment, span=span, size=size)

    async def _read(self, conn: AsyncConnection[Any], target: Target, span: Span, size: int) -> Rows:
        began = time.monotonic()
        await conn.execute(QUERIES["text_format"])
        await conn.execute(target.fill(QUERIES["lock_table"]), {})
        parts = reading(await read_columns(conn, target.oid))
        within: dict[str, object] = {
            "horizon": self._claim.horizon,
            "wide": _WIDE,
            "skipped_parts": _array(part for part, _ in span.skip),
            "skipped_places": _array(place for _, place in span.skip),
        }
        if isinstance(span, AgeSpan):
            query = "read_by_age"
            within |= {"start": span.start, "stop": span.stop, "size": min(size, MOST_ROWS)}
        else:
            query = "read_by_place"
            within |= places(cut(span, size)[0])
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
                    if line is None:  # it is another version by now
                        continue
                    rows.parts.append(part)
                    rows.places.append(f'"{place}"')
                    rows.versions.append(version)
                    rows.ages.append(age)
                    rows.lines.append(line)
                    width += len(line)
                    if width >= MOST_BYTES:
                        rows.more = True
                        break
                if rows.more or len(fetched) < _FETCHED:
                    break
                if len(rows.lines) >= MOST_ROWS or time.monotonic() - began > LONGEST_READ.total_seconds():
                    rows.more = True
                    break
        rows.more = rows.more or (isinstance(span, AgeSpan) and seen >= min(size, MOST_ROWS))
        found = await conn.execute(QUERIES["table_files"], {"tables": _array(set(rows.parts))})
        rows.files = dict(await found.fetchall())
        return rows

    async def _keep(self, lines: list[str]) -> int:
        packed = await asyncio.to_thread(pack, lines)
        writing = self._archive.write(self._claim.table_name, self._claim.id, packed.data)
        location = await self._patience.during(writing)
        async with self._transaction() as conn:
            await self._ledger.lock(conn, self._claim)
            (segment,) = await fetch_row(
                conn,
                QUERIES["note_segment"],
                {
                    "run": self._claim.id,
                    "place": location.place,
                    "start": location.start,
                    "length": location.length,
                    "sha256": packed.sha256,
                    "rows": len(lines),
                },
            )
            await self._ledger.move(conn, self._claim, 0)
        return int(segment)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedSweep:
    """Rows that are in the archive and in the ledger, to be deleted.

    Args:
        rows: Which they are.
        segment: Their segment's number; None if there are none.
        span: Where they were found.
        size: How many rows, or blocks, were to be taken on.
    """

    rows: Rows
    segment: int | None
    span: Span
    size: int

    @property
    def took(self) -> timedelta:
        """How long the transaction took that read them."""
        return self.rows.took

    async def delete(
        self, conn: AsyncConnection[Any], target: Target, horizon: datetime, _span: Span, _size: int
    ) -> Swept:
        """Delete them, as far as they are as they were.

        Args:
            conn: The connection of a transaction that holds the run's lock.
            target: The table.
            horizon: Rows older than this are eligible.

        Raises:
            psycopg.errors.LockNotAvailable: Somebody has locked one of them.
        """
        kept: list[int] = []
        if self.rows.places:
            parameters = {"horizon": horizon, **self.rows.parameters()}
            (kept,) = await fetch_row(conn, target.fill(QUERIES["delete_archived"]), parameters)
        held = len(self.rows.places) - len(kept)
        if kept:  # changed meanwhile, or kept by a trigger: which of both is worth a look
            more, kept = await self._delete_free(conn, target, horizon, kept)
            held += more
        return await self._note(conn, held=held, kept=kept)

    async def delete_carefully(
        self, conn: AsyncConnection[Any], target: Target, horizon: datetime, _span: Span, _size: int
    ) -> Swept:
        """Delete those that nobody else has locked, as far as they are as they were.

        Args:
            conn: The connection of a transaction that holds the run's lock.
            target: The table.
            horizon: Rows older than this are eligible.
        """
        held, kept = await self._delete_free(conn, target, horizon, list(range(len(self.rows.places))))
        return await self._note(conn, held=held, kept=kept)

    async def _delete_free(
        self, conn: AsyncConnection[Any], target: Target, horizon: datetime, which: list[int]
    ) -> tuple[int, list[int]]:
        """Return how many of them were ours to delete, and which are still there."""
        if not which:
            return 0, []
        parameters = {"horizon": horizon, **self.rows.parameters(which)}
        held, kept = await fetch_row(conn, target.fill(QUERIES["delete_archived_unlocked"]), parameters)
        return held, [which[at] for at in kept]

    async def _note(self, conn: AsyncConnection[Any], *, held: int, kept: list[int]) -> Swept:
        seen = len(self.rows.places)
        if self.segment is not None:
            noted = {"segment": self.segment, "deleted": seen - len(kept), "kept": kept or None}
            await conn.execute(QUERIES["note_deleted"], noted)
        covered, rest = self._divide(kept)
        return Swept(seen=seen, held=held, deleted=seen - len(kept), covered=covered, rest=rest)

    def _divide(self, kept: list[int]) -> tuple[Span, Span | None]:
        """Return what of the span was gone over, and what is left of it."""
        rows, span = self.rows, self.span
        if isinstance(span, BlockSpan):
            blocks, others = cut(span, self.size)
            skip = span.skip + tuple((rows.parts[at], rows.places[at]) for at in kept)
            if rows.more and len(skip) <= _MOST_SKIPPED:
                return blocks, replace(span, skip=skip)
            return blocks, others
        newest = rows.ages[-1] if rows.ages else None
        if newest is None or not rows.more:
            return replace(span, skip=()), None
        skip = span.skip if newest == span.start else ()
        skip += tuple((rows.parts[at], rows.places[at]) for at in kept if rows.ages[at] == newest)
        covered = AgeSpan(start=span.start, stop=newest)
        if len(skip) > _MOST_SKIPPED:  # nothing but rows of one age that cannot be had
            return replace(span, skip=()), None
        return covered, AgeSpan(start=newest, stop=span.stop, skip=skip)


def _array(texts: Iterable[str]) -> str:
    return f"{{{','.join(texts)}}}"

"""The ledger's record of a run's archived rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.archive._archive import Location

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedSegment:
    """The rows of one batch in the archive."""

    id: int
    location: Location
    sha256: str
    rows: int  # in the segment
    deleted: int  # of these
    kept: frozenset[int]  # positions of those that were not, counted from 0
    restored_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedRun:
    """The archived rows of a run."""

    run: int
    table: str  # the policy's name
    age_column: str
    horizon: datetime
    segments: tuple[ArchivedSegment, ...]  # with deleted rows, in the order of the batches

    @property
    def missing(self) -> tuple[ArchivedSegment, ...]:
        """The segments that were not restored yet."""
        return tuple(segment for segment in self.segments if segment.restored_at is None)

    @property
    def rows(self) -> int:
        """Number of rows that can be restored."""
        return sum(segment.deleted for segment in self.missing)


async def read_archived_run(conn: AsyncConnection[Any], run: int) -> ArchivedRun:
    """Return the archived rows of a run; raise ConfigurationError where there is nothing to restore."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(QUERIES["archived_run"], {"run": run})
        found = await cursor.fetchone()
        if found is None:
            raise ConfigurationError(f"There is no run {run}: see `retention history`.")
        await cursor.execute(QUERIES["segments"], {"run": run})
        segments = tuple(map(_segment, await cursor.fetchall()))
    if found["state"] == "running":
        raise ConfigurationError(f"Run {run} on {found['table']} has not ended: restore it afterwards.")
    if not segments:
        raise ConfigurationError(
            f"Nothing of run {run} on {found['table']} is in the archive: it deleted nothing, or its policy"
            " does not archive."
        )
    return ArchivedRun(
        run=run,
        table=found["table"],
        age_column=found["age_column"],
        horizon=found["horizon"],
        segments=segments,
    )


async def read_archive_totals(conn: AsyncConnection[Any], run: int) -> dict[str, object]:
    """Return how many archived rows a run deleted, and where they are, for its audit entry; empty if none."""
    rows, files, place = await fetch_row(conn, QUERIES["archive_totals"], {"run": run})
    return {"rows": rows, "files": files, "place": place} if rows else {}


def _segment(row: dict[str, Any]) -> ArchivedSegment:
    return ArchivedSegment(
        id=row["id"],
        location=Location(place=row["place"], start=row["start"], length=row["length"]),
        sha256=row["sha256"],
        rows=row["rows"],
        deleted=row["deleted"],
        kept=frozenset(row["kept"] or ()),
        restored_at=row["restored_at"],
    )

"""Rows of a run brought back from the archive, a transaction for each segment.

The audit log has two entries of it. The first transaction that brings rows back writes that it begins, so
that no row is back of which nothing is said; when all is done, a second one sums up. Has a process died
between them, the ledger says which segments came back since then (`restored_at`). Where nothing comes back,
nothing has changed, and there is no entry.

A segment's checksum is compared before any of its rows comes back. What is missing or damaged is told, and
does not keep the others from coming back.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from watchkeeper.audit import append
from watchkeeper.exceptions import (
    ArchiveError,
    AuditError,
    ConfigurationError,
    DatabaseUnavailableError,
    RetentionError,
)
from watchkeeper.retention._holds import doubled
from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.archive._archive import Location
from watchkeeper.retention.archive._segment import unpack
from watchkeeper.retention.table._columns import read_columns, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.database import Database
    from watchkeeper.retention.archive._archive import Archive

ACTION: Final = "retention.restore"

_STATEMENT_TIMEOUT: Final = timedelta(seconds=60)
_LOCK_TIMEOUT: Final = timedelta(seconds=5)
# What one statement puts back at most.
_MOST_ROWS: Final = 2000
_MOST_CHARACTERS: Final = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Rows of one sweep in the archive.

    Args:
        id: Its number in the ledger.
        location: Where it lies.
        sha256: The checksum that it had.
        rows: How many rows it holds.
        deleted: How many of them went.
        kept: Which of them did not, counted from 0.
        restored_at: When they were put back; None if they were not.
    """

    id: int
    location: Location
    sha256: str
    rows: int
    deleted: int
    kept: frozenset[int]
    restored_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedRun:
    """What is in the archive of a run.

    Args:
        run: Its number.
        table: The policy's name.
        age_column: The column that says how old a row is.
        horizon: What was older than this went.
        segments: Those of which rows went, in the order of the sweeps.
    """

    run: int
    table: str
    age_column: str
    horizon: datetime
    segments: tuple[Segment, ...]

    @property
    def missing(self) -> tuple[Segment, ...]:
        """The segments that were not put back yet."""
        return tuple(segment for segment in self.segments if segment.restored_at is None)

    @property
    def rows(self) -> int:
        """How many rows can be put back."""
        return sum(segment.deleted for segment in self.missing)


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """What restoring a run came to.

    Args:
        found: What there was to put back.
        rows: How many came back.
        present: How many were there already, by a unique key.
        earlier: How many had come back before this.
        problems: Why others did not, a sentence each.
    """

    found: ArchivedRun
    rows: int
    present: int
    earlier: int
    problems: tuple[str, ...]


async def read_archived_run(conn: AsyncConnection[Any], run: int) -> ArchivedRun:
    """Look up what of a run is in the archive.

    Args:
        conn: Any connection.
        run: Its number.

    Raises:
        ConfigurationError: There is no such run, or nothing of it was archived.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(QUERIES["archived_run"], {"run": run})
        found = await cursor.fetchone()
        if found is None:
            raise ConfigurationError(f"There is no run {run}: see `retention history`.")
        await cursor.execute(QUERIES["segments"], {"run": run})
        segments = tuple(map(_segment, await cursor.fetchall()))
    if found["state"] == "running":
        raise ConfigurationError(f"Run {run} on {found['table']} is going on: restore it when it has ended.")
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


class Restoring:
    """Puts the rows of a run back.

    Args:
        database: Where to.
        archive: Where from.
        found: What is to come back.
        restored_by: Who wants it.
        on_rows: Called with the number of rows after each segment.
    """

    def __init__(
        self,
        database: Database,
        archive: Archive,
        found: ArchivedRun,
        *,
        restored_by: str,
        on_rows: Callable[[int], None],
    ) -> None:
        self._database = database
        self._archive = archive
        self._found = found
        self._restored_by = restored_by
        self._on_rows = on_rows
        self._begun: int | None = None  # the first audit entry

    async def run(self) -> Restored:
        """Put back what was not yet; run again after a problem, it goes on."""
        rows = present = segments = 0
        problems: list[str] = []
        for segment in self._found.missing:
            try:
                lines = await self._read(segment)
            except ArchiveError as error:
                problems.append(str(error))
                continue
            try:
                inserted = await self._put_back(segment, lines)
            except (RetentionError, AuditError, DatabaseUnavailableError, psycopg.Error) as error:
                problems.append(self._sentence(error))
                break  # the next one would fail like it
            if inserted is None:
                continue
            segments += 1
            rows += inserted
            present += len(lines) - inserted
            self._on_rows(len(lines))
        if self._begun is not None:
            counted = {"restored": rows, "present": present, "segments": segments, "problems": len(problems)}
            try:
                await self._sum_up(counted)
            except (AuditError, DatabaseUnavailableError, psycopg.Error) as error:
                problems.append(
                    "What came back is not summed up in the audit log, where entry"
                    f" {self._begun} says that it began: {' '.join(str(error).split())}"
                )
        return Restored(
            found=self._found,
            rows=rows,
            present=present,
            earlier=sum(segment.deleted for segment in self._found.segments if segment.restored_at),
            problems=tuple(dict.fromkeys(problems)),
        )

    async def _read(self, segment: Segment) -> list[str]:
        try:
            data = await self._archive.read(segment.location)
        except ArchiveError:
            raise
        except Exception as error:
            raise ArchiveError(
                f"{segment.deleted:,} rows are not put back, because their part of {segment.location.place}"
                f" cannot be read: {type(error).__name__}: {error}"
            ) from error
        try:
            lines = await asyncio.to_thread(unpack, data, sha256=segment.sha256, rows=segment.rows)
        except ArchiveError as error:
            raise ArchiveError(
                f"{segment.deleted:,} rows are not put back, because their part of {segment.location.place}"
                f" (from byte {segment.location.start}) is damaged: {error}. Bring back a copy of the file"
                " that is whole."
            ) from error
        return [line for position, line in enumerate(lines) if position not in segment.kept]

    async def _put_back(self, segment: Segment, lines: Sequence[str]) -> int | None:
        """Put a segment's rows back and return how many; None if somebody else was quicker."""
        begun = self._begun
        async with self._database.transaction(statement_timeout=_STATEMENT_TIMEOUT * 2) as conn:
            limits = {
                "statement_ms": _milliseconds(_STATEMENT_TIMEOUT),
                "lock_ms": _milliseconds(_LOCK_TIMEOUT),
            }
            await conn.execute(QUERIES["limits"], limits)
            await self._keep_runs_out(conn)
            noted = await conn.execute(QUERIES["note_restored"], {"segment": segment.id})
            if await noted.fetchone() is None:
                return None
            if begun is None:
                missing = self._found.missing
                begun = await self._append(
                    conn, {"status": "begun", "rows": self._found.rows, "segments": len(missing)}
                )
            await conn.execute(QUERIES["text_format"])
            query = await self._query(conn, json.loads(lines[0]).keys())
            rows = 0
            for part in _bounded(lines):
                rows += (await conn.execute(query, {"rows": f"[{','.join(part)}]"})).rowcount
        self._begun = begun
        return rows

    async def _sum_up(self, counted: dict[str, int]) -> None:
        """Write the second entry; the sentences of problems stay out of it, as they may quote rows."""
        status = "incomplete" if counted["problems"] else "completed"
        async with self._database.transaction() as conn:
            await self._append(conn, {"status": status, "begun": self._begun, **counted})

    async def _append(self, conn: AsyncConnection[Any], payload: dict[str, object]) -> int:
        return await append(
            conn,
            actor_type="user",
            actor_id=self._restored_by,
            action=ACTION,
            entity=self._found.table,
            entity_id=str(self._found.run),
            payload=payload,
        )

    async def _keep_runs_out(self, conn: AsyncConnection[Any]) -> None:
        """See that none is open or begins until this transaction ends: it would delete them anew."""
        await conn.execute(QUERIES["lock_policy"], {"table": self._found.table})
        row = await (await conn.execute(QUERIES["open_run"], {"table": self._found.table})).fetchone()
        if row is not None:
            raise RetentionError(
                f"{self._found.table} is being pruned (run {row[0]}): restore when that has ended, or it"
                " takes what comes back."
            )

    async def _query(self, conn: AsyncConnection[Any], archived: Collection[str]) -> sql.Composed:
        schema, _, name = self._found.table.rpartition(".")
        found = await conn.execute(QUERIES["find_table"], {"table": name, "schema": schema or None})
        row = await found.fetchone()
        if row is None:
            raise RetentionError(f"There is no table {self._found.table} any more: create it as it was.")
        oid, schema, name, *_ = row
        allowed, grant = await fetch_row(conn, QUERIES["may_insert"], {"oid": oid})
        if not allowed:
            raise RetentionError(
                f"The service lacks INSERT on {self._found.table}. As its owner, for as long as it takes:"
                f" {grant};"
            )
        table = sql.Identifier(doubled(schema), doubled(name))
        await conn.execute(sql.SQL(QUERIES["lock_table"]).format(table=table), {})
        columns = await read_columns(conn, oid)
        gone = sorted(set(archived) - {column.name for column in columns})
        if gone:
            raise RetentionError(
                f"The table {self._found.table} has no column {', '.join(gone)} any more, which the archived"
                " rows have: add it, restore, and drop it again if it is not wanted."
            )
        # One that was added meanwhile gets its default, one that is generated by now follows from the others.
        written = [column for column in columns if column.name in archived and not column.generated]
        return sql.SQL(QUERIES["restore_rows"]).format(table=table, **writing(written))

    def _sentence(self, error: Exception) -> str:
        text = " ".join(str(error).split())
        if not isinstance(error, psycopg.Error):
            return text
        if isinstance(error, errors.InsufficientPrivilege):
            return f"The service may not put rows into {self._found.table}: {text}."
        if isinstance(error, errors.LockNotAvailable):
            return f"{self._found.table} is locked by somebody else ({text}): try again when that has ended."
        return (
            f"The rows do not fit into {self._found.table} as it is now ({text}): make it take them, such as"
            " by the rows that they refer to, and restore again."
        )


def _bounded(lines: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    width = 0
    for line in lines:
        if part and (len(part) >= _MOST_ROWS or width + len(line) > _MOST_CHARACTERS):
            yield part
            part, width = [], 0
        part.append(line)
        width += len(line)
    yield part


def _segment(row: dict[str, Any]) -> Segment:
    return Segment(
        id=row["id"],
        location=Location(place=row["place"], start=row["start"], length=row["length"]),
        sha256=row["sha256"],
        rows=row["rows"],
        deleted=row["deleted"],
        kept=frozenset(row["kept"] or ()),
        restored_at=row["restored_at"],
    )


def _milliseconds(duration: timedelta) -> str:
    return str(round(duration / timedelta(milliseconds=1)))

"""Restores the rows of a run from the archive, one transaction for each segment.

A missing or damaged segment is reported, and does not keep the others from being restored. The audit log gets
an entry with the first restored rows, and one with the totals at the end.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors, sql

from watchkeeper.audit import append
from watchkeeper.database._connection import one_line
from watchkeeper.exceptions import ArchiveError, AuditError, DatabaseUnavailableError, RetentionError
from watchkeeper.retention._queries import QUERIES, escape_percent, fetch_row, set_transaction
from watchkeeper.retention.archive._segment import unpack
from watchkeeper.retention.table._columns import read_columns, restore_placeholders

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from psycopg import AsyncConnection

    from watchkeeper.database import Database
    from watchkeeper.retention.archive._archive import Archive
    from watchkeeper.retention.archive._archived_run import ArchivedRun, ArchivedSegment

ACTION: Final = "retention.restore"

_STATEMENT_TIMEOUT: Final = timedelta(seconds=60)
_LOCK_TIMEOUT: Final = timedelta(seconds=5)
# Maximum size of one INSERT.
_MOST_ROWS: Final = 2000
_MOST_CHARACTERS: Final = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """The outcome of restoring a run."""

    found: ArchivedRun  # what was to be restored
    rows: int  # restored now
    present: int  # in the table already, by a unique key
    earlier: int  # restored before
    problems: tuple[str, ...]  # why the others were not restored, one sentence each


class Restorer:
    """Restores the rows of one run, and calls `on_rows` with their number after each segment."""

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
        self._first_entry: int | None = None  # in the audit log

    async def restore(self) -> Restored:
        """Restore the segments that were not restored yet; called again after a problem, it continues."""
        rows = present = segments = 0
        problems: list[str] = []
        for segment in self._found.missing:
            try:
                lines = await self._read(segment)
            except ArchiveError as error:
                problems.append(str(error))
                continue
            try:
                inserted = await self._insert(segment, lines)
            except (RetentionError, AuditError, DatabaseUnavailableError, psycopg.Error) as error:
                problems.append(self._explain(error))
                break  # the next one would fail in the same way
            if inserted is None:
                continue
            segments += 1
            rows += inserted
            present += len(lines) - inserted
            self._on_rows(len(lines))
        if self._first_entry is not None:
            totals = {"restored": rows, "present": present, "segments": segments, "problems": len(problems)}
            problem = await self._audit_totals(totals)
            problems += [] if problem is None else [problem]
        return Restored(
            found=self._found,
            rows=rows,
            present=present,
            earlier=sum(segment.deleted for segment in self._found.segments if segment.restored_at),
            problems=tuple(dict.fromkeys(problems)),
        )

    async def _read(self, segment: ArchivedSegment) -> list[str]:
        subject = f"{segment.deleted:,} rows are not restored, because their part of {segment.location.place}"
        try:
            data = await self._archive.read(segment.location)
        except ArchiveError:
            raise
        except Exception as error:
            raise ArchiveError(f"{subject} cannot be read: {type(error).__name__}: {error}") from error
        try:
            lines = await asyncio.to_thread(unpack, data, sha256=segment.sha256, rows=segment.rows)
        except ArchiveError as error:
            raise ArchiveError(
                f"{subject} (from byte {segment.location.start}) is damaged: {error}. Replace the file by an"
                " intact copy."
            ) from error
        return [line for position, line in enumerate(lines) if position not in segment.kept]

    async def _insert(self, segment: ArchivedSegment, lines: Sequence[str]) -> int | None:
        """Insert a segment's rows and return their number; None if another process restored it."""
        entry = self._first_entry
        async with self._database.transaction(statement_timeout=_STATEMENT_TIMEOUT * 2) as conn:
            await set_transaction(conn, statement=_STATEMENT_TIMEOUT, lock=_LOCK_TIMEOUT)
            await self._lock_out_runs(conn)
            recorded = await conn.execute(QUERIES["record_restored"], {"segment": segment.id})
            if await recorded.fetchone() is None:
                return None
            if entry is None:
                begin = {"status": "begun", "rows": self._found.rows, "segments": len(self._found.missing)}
                entry = await self._audit(conn, begin)
            await conn.execute(QUERIES["text_format"])
            query = await self._insert_query(conn, json.loads(lines[0]).keys())
            rows = 0
            for batch in _batched(lines):
                rows += (await conn.execute(query, {"rows": f"[{','.join(batch)}]"})).rowcount
        self._first_entry = entry
        return rows

    async def _audit_totals(self, totals: dict[str, int]) -> str | None:
        """Write the last entry, without the text of problems, which may quote rows; return why it failed."""
        status = "incomplete" if totals["problems"] else "completed"
        try:
            async with self._database.transaction() as conn:
                await self._audit(conn, {"status": status, "begun": self._first_entry, **totals})
        except (AuditError, DatabaseUnavailableError, psycopg.Error) as error:
            return (
                f"The totals could not be added to the audit log, where entry {self._first_entry} records the"
                f" beginning: {one_line(error)}"
            )
        return None

    async def _audit(self, conn: AsyncConnection[Any], payload: dict[str, object]) -> int:
        return await append(
            conn,
            actor_type="user",
            actor_id=self._restored_by,
            action=ACTION,
            entity=self._found.table,
            entity_id=str(self._found.run),
            payload=payload,
        )

    async def _lock_out_runs(self, conn: AsyncConnection[Any]) -> None:
        """Keep runs from starting until this transaction ends: they would delete the rows again."""
        await conn.execute(QUERIES["lock_policy"], {"table": self._found.table})
        row = await (await conn.execute(QUERIES["open_run"], {"table": self._found.table})).fetchone()
        if row is not None:
            raise RetentionError(
                f"{self._found.table} is being pruned (run {row[0]}), which would delete the restored rows:"
                " restore when that run has ended."
            )

    async def _insert_query(self, conn: AsyncConnection[Any], archived: Collection[str]) -> sql.Composed:
        schema, _, name = self._found.table.rpartition(".")
        found = await conn.execute(QUERIES["find_table"], {"table": name, "schema": schema or None})
        row = await found.fetchone()
        if row is None:
            raise RetentionError(f"The table {self._found.table} does not exist any more: create it again.")
        oid, schema, name, *_ = row
        allowed, grant = await fetch_row(conn, QUERIES["insert_privilege"], {"oid": oid})
        if not allowed:
            raise RetentionError(
                f"The service lacks INSERT on {self._found.table}. As its owner, until the rows are restored:"
                f" {grant};"
            )
        table = sql.Identifier(escape_percent(schema), escape_percent(name))
        await conn.execute(sql.SQL(QUERIES["lock_table"]).format(table=table), {})
        columns = await read_columns(conn, oid)
        dropped = sorted(set(archived) - {column.name for column in columns})
        if dropped:
            raise RetentionError(
                f"The table {self._found.table} has no column {', '.join(dropped)} any more, which the"
                " archived rows have: add it, restore, and drop it again if it is not needed."
            )
        # A column that was added since gets its default; one that is generated now is computed.
        written = [column for column in columns if column.name in archived and not column.generated]
        return sql.SQL(QUERIES["restore_rows"]).format(table=table, **restore_placeholders(written))

    def _explain(self, error: Exception) -> str:
        text = one_line(error)
        if not isinstance(error, psycopg.Error):
            return text
        if isinstance(error, errors.InsufficientPrivilege):
            return f"The service may not insert rows into {self._found.table}: {text}."
        if isinstance(error, errors.LockNotAvailable):
            return (
                f"Another transaction has locked {self._found.table} ({text}): try again when it has ended."
            )
        return (
            f"The rows do not fit into {self._found.table} as it is now ({text}): change it so that they do,"
            " such as by adding the rows that they refer to, and restore again."
        )


def _batched(lines: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    width = 0
    for line in lines:
        if batch and (len(batch) >= _MOST_ROWS or width + len(line) > _MOST_CHARACTERS):
            yield batch
            batch, width = [], 0
        batch.append(line)
        width += len(line)
    yield batch

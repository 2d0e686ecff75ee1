"""Partitions that lie entirely past the horizon, and what prevents dropping them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors, sql

from watchkeeper.database._connection import one_line
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention._queries import QUERIES, escape_percent, fetch_row, set_transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.database._owner import Owner
    from watchkeeper.retention.table._target import Target

LOCK_TIMEOUT: Final = timedelta(milliseconds=100)
"""Maximum time that a drop waits for a lock or makes other transactions wait for its locks."""

_STATEMENT_TIMEOUT: Final = timedelta(seconds=5)
_MAX_NAMES: Final = 3  # in a sentence

_OBSTACLES: Final = {
    "pending": "its DETACH CONCURRENTLY was interrupted: finish it by {detail}",
    "trigger": "the trigger {detail} would not fire for its rows",
    "foreign key": "{detail} refers to the table",
    "publication": "the publication {detail} would not publish the deletes",
    "view": "the view {detail} reads it",
    "owner": "it belongs to {detail}, and DATABASE_OWNER_URL connects as another role",
}
HELD: Final = "a hold keeps rows of it"
"""Why a partition with a held row is not dropped."""

BUSY: Final = (errors.LockNotAvailable, errors.QueryCanceled, errors.DeadlockDetected)
"""Errors that a retry may not meet: another transaction has the partition locked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A partition that ends before the horizon."""

    oid: int
    name: str  # with its schema, as SQL writes it
    table: sql.Identifier
    leaves: dict[int, sql.Identifier]  # the tables that store its rows, by oid
    rows: int  # as of the last ANALYZE
    bytes: int  # with its indexes
    kept: str | None  # why it cannot be dropped; None if it can


@dataclass(frozen=True, kw_only=True, slots=True)
class Partitions:
    """The partitions of a table by ranges of the age column."""

    total: int = 0  # 0 where it is partitioned otherwise, or not at all
    old: tuple[Partition, ...] = ()  # those that end before the horizon, oldest first

    @property
    def dropped(self) -> tuple[Partition, ...]:
        """Those that can be dropped."""
        return tuple(partition for partition in self.old if partition.kept is None)

    @property
    def kept(self) -> dict[str, str]:
        """Why the others cannot be dropped, by name."""
        return {partition.name: partition.kept for partition in self.old if partition.kept is not None}


async def find_partitions(
    conn: AsyncConnection[Any], owner: Owner, target: Target, horizon: datetime, *, check_holds: bool
) -> Partitions:
    """Return the old partitions, and which of them can be dropped; raises LockNotAvailable if one is locked.

    `check_holds` searches for held rows, for some seconds per partition; a run finds them when it counts.
    """
    if not target.has_children:
        return Partitions()
    seen = await read_partitions(conn, target, horizon)
    if not seen.old:
        return seen
    if target.archived:
        return _keep_all(seen, "its rows have to be archived first")
    try:
        async with owner.transaction() as owner_conn:
            await set_partition_timeouts(owner_conn)
            found = await read_partitions(owner_conn, target, horizon)
            if check_holds and target.holds:
                return await _keep_held(owner_conn, target, found)
            return found
    except BUSY:
        raise
    except (DatabaseUnavailableError, errors.Error) as error:
        return _keep_all(seen, f"its owner cannot read it: {one_line(error)}")


async def read_partitions(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, only: int | None = None
) -> Partitions:
    """Read from the catalog which partitions, or `only` one by its oid, are old and can be dropped."""
    parameters = {"oid": target.oid, "age": target.age_column, "horizon": horizon, "only": only}
    found = await conn.execute(QUERIES["partitions"], parameters)
    total, old = 0, []
    async for count, oid, name, schema, table, leaves, rows, size, kind, detail in found:
        total = count
        if name is None:  # none of them is old
            continue
        old.append(
            Partition(
                oid=oid,
                name=name,
                table=_identifier(schema, table),
                leaves={leaf: _identifier(*names) for leaf, *names in leaves},
                rows=rows,
                bytes=size,
                kept=None if kind is None else _OBSTACLES[kind].format(detail=detail),
            )
        )
    return Partitions(total=total, old=tuple(old))


async def set_partition_timeouts(conn: AsyncConnection[Any]) -> None:
    """Set the time-outs of a transaction that reads partitions or drops one."""
    await set_transaction(conn, statement=_STATEMENT_TIMEOUT, lock=LOCK_TIMEOUT)


def explain_kept(kept: Mapping[str, str]) -> list[str]:
    """Return a sentence for each reason why partitions are not dropped."""
    names: dict[str, list[str]] = {}
    for name, why in kept.items():
        names.setdefault(why, []).append(name)
    return [f"Not dropped: {abbreviate(some)}, because {why}." for why, some in names.items()]


def abbreviate(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


async def _keep_held(conn: AsyncConnection[Any], target: Target, partitions: Partitions) -> Partitions:
    old = []
    for partition in partitions.old:
        held = False
        if partition.kept is None:
            inside = replace(target, table=partition.table)
            try:
                async with conn.transaction():
                    (held,) = await fetch_row(conn, inside.fill(QUERIES["has_held"]), {})
            except errors.QueryCanceled:
                pass  # the run finds out when it counts
        old.append(replace(partition, kept=HELD) if held else partition)
    return replace(partitions, old=tuple(old))


def _keep_all(partitions: Partitions, why: str) -> Partitions:
    return replace(partitions, old=tuple(replace(partition, kept=why) for partition in partitions.old))


def _identifier(schema: str, table: str) -> sql.Identifier:
    return sql.Identifier(escape_percent(schema), escape_percent(table))

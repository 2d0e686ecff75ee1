"""Which partitions of a table are old as a whole, and what keeps them from being dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors, sql

from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention._holds import doubled
from watchkeeper.retention._queries import QUERIES, fetch_row, milliseconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.database._owner import Owner
    from watchkeeper.retention.table._target import Target

LOCK_WAIT: Final = timedelta(milliseconds=100)
"""How long dropping waits for a lock, and lets others wait for one of its own."""

_STATEMENT_TIMEOUT: Final = timedelta(seconds=5)
_SHOWN: Final = 3  # names in a sentence

_OBSTACLES: Final = {
    "pending": "somebody has begun to detach what is not to be seen since then: finish that by {detail}",
    "trigger": "the trigger {detail} would not fire for its rows",
    "foreign key": "{detail} refers to the table",
    "publication": "the publication {detail} would not tell that its rows went",
    "view": "the view {detail} reads it",
    "owner": "it belongs to {detail}, which DATABASE_OWNER_URL does not connect as",
}
HELD: Final = "a hold keeps rows of it"
"""Why a partition is not dropped that has a held row."""

BUSY: Final = (errors.LockNotAvailable, errors.QueryCanceled, errors.DeadlockDetected)
"""What may be over in a moment: somebody else has it locked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A partition that ends before the horizon.

    Args:
        oid: Its identity in the catalogue.
        name: Its name with its schema, as SQL writes it.
        table: The same in a statement.
        leaves: The tables that its rows lie in, by identity: itself, unless it is divided further.
        rows: About how many, as it was last analysed.
        bytes: How large it is with its indexes.
        kept: Why it is not dropped as a whole; None if it is.
    """

    oid: int
    name: str
    table: sql.Identifier
    leaves: dict[int, sql.Identifier]
    rows: int
    bytes: int
    kept: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Partitions:
    """What a table is divided into by the age of its rows.

    Args:
        total: How many partitions there are; 0 where it is divided in another way, or not at all.
        old: Those that end before the horizon, the oldest first.
    """

    total: int = 0
    old: tuple[Partition, ...] = ()

    @property
    def dropped(self) -> tuple[Partition, ...]:
        """Those that can be dropped as a whole."""
        return tuple(partition for partition in self.old if partition.kept is None)

    @property
    def kept(self) -> dict[str, str]:
        """Why the others cannot, by name."""
        return {partition.name: partition.kept for partition in self.old if partition.kept is not None}


async def find_partitions(
    conn: AsyncConnection[Any], owner: Owner, target: Target, horizon: datetime, *, held: bool
) -> Partitions:
    """Look which partitions of a table can be dropped as a whole.

    Args:
        conn: The connection of a transaction of the service's role.
        owner: Asked if there are old partitions.
        target: The table.
        horizon: Rows older than this are eligible.
        held: Whether to look for held rows too, for up to some seconds a partition. A run meets them when it
            counts.

    Raises:
        psycopg.errors.LockNotAvailable: Somebody has locked one of them.
    """
    if not target.has_children:
        return Partitions()
    seen = await read_partitions(conn, target, horizon)
    if not seen.old:
        return seen
    if target.archived:
        return _all_kept(seen, "each of its rows is to be archived first")
    try:
        async with owner.transaction() as asking:
            await limit(asking)
            found = await read_partitions(asking, target, horizon)
            return await _without_held(asking, target, found) if held and target.holds else found
    except BUSY:
        raise
    except (DatabaseUnavailableError, errors.Error) as error:
        return _all_kept(seen, f"its owner cannot look at it: {one_line(error)}")


def explain(kept: Mapping[str, str]) -> list[str]:
    """Return a sentence for each reason why partitions are not dropped as a whole.

    Args:
        kept: The reason by the partition's name.
    """
    names: dict[str, list[str]] = {}
    for name, why in kept.items():
        names.setdefault(why, []).append(name)
    return [f"Not dropped as a whole: {shortened(some)}, because {why}." for why, some in names.items()]


def shortened(names: Sequence[str]) -> str:
    """Return the first names of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


async def read_partitions(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, only: int | None = None
) -> Partitions:
    """Read of the catalogue which partitions are old, and what keeps the asking role from dropping them.

    Args:
        conn: A connection as the owner.
        target: The table.
        horizon: Rows older than this are eligible.
        only: Identity of the one to look at; default all.
    """
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


async def _without_held(conn: AsyncConnection[Any], target: Target, partitions: Partitions) -> Partitions:
    old = []
    for partition in partitions.old:
        inside = replace(target, table=partition.table)
        held = False
        if partition.kept is None:
            try:
                async with conn.transaction():
                    (held,) = await fetch_row(conn, inside.fill(QUERIES["has_held"]), {})
            except errors.QueryCanceled:
                pass  # the run finds out when it counts
        old.append(replace(partition, kept=HELD) if held else partition)
    return replace(partitions, old=tuple(old))


def _all_kept(partitions: Partitions, why: str) -> Partitions:
    return replace(partitions, old=tuple(replace(partition, kept=why) for partition in partitions.old))


async def limit(conn: AsyncConnection[Any]) -> None:
    """Set the time-outs of a transaction that looks at partitions or drops one.

    Args:
        conn: The connection of that transaction.
    """
    limits = {"statement_ms": milliseconds(_STATEMENT_TIMEOUT), "lock_ms": milliseconds(LOCK_WAIT)}
    await conn.execute(QUERIES["limits"], limits)


def _identifier(schema: str, table: str) -> sql.Identifier:
    return sql.Identifier(doubled(schema), doubled(table))


def one_line(error: BaseException) -> str:
    """Return the error's text without line breaks."""
    return " ".join(str(error).split())

"""Rows that stay because others refer to them: foreign keys that refuse a delete (NO ACTION, RESTRICT).

Such a row is not eligible until what refers to it is gone. So one of them does not fail the delete of all the
others, and policies are carried out children first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from watchkeeper.retention._holds import doubled
from watchkeeper.retention._queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import AsyncConnection

    from watchkeeper.retention._policy import Policy

# What the name of an operator consists of.
_OPERATOR_SIGNS: Final = {sign: sql.SQL(doubled(sign)) for sign in "+-*/<>=~!@#%^&|`?"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A column that is referred to, and the one that refers to it.

    Args:
        referred: Its name.
        referring: The other's name.
        operator: Schema and name of the operator that the key compares them by.
        collation: Schema and name of the collation that it compares them in, where theirs are not the same.
    """

    referred: str
    referring: str
    operator: tuple[str, str]
    collation: tuple[str, str] | None

    @property
    def predicate(self) -> sql.Composed:
        """Whether a row `c` refers to a row `t` by these."""
        schema, name = self.operator
        collate = sql.Composed([])
        if self.collation is not None:
            collate = sql.SQL(" COLLATE {}").format(sql.Identifier(*map(doubled, self.collation)))
        return sql.SQL("t.{}{} OPERATOR({}.{}) c.{}").format(
            sql.Identifier(doubled(self.referred)),
            collate,
            sql.Identifier(doubled(schema)),
            sql.Composed([_OPERATOR_SIGNS[sign] for sign in name]),
            sql.Identifier(doubled(self.referring)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A foreign key that keeps rows which it refers to.

    Args:
        schema: That of the table that refers.
        table: Its name.
        partitioned: Whether it is partitioned; the key is not that of tables which inherit from others.
        within: Whether the rows that refer lie in the pruned table themselves.
        parts: In which parts of the pruned table the rows lie that are referred to; None for all.
        pairs: Its columns.
    """

    schema: str
    table: str
    partitioned: bool
    within: bool
    parts: tuple[int, ...] | None
    pairs: tuple[Pair, ...]

    @property
    def predicate(self) -> sql.Composed:
        """Whether any row refers to a row `t`.

        OFFSET 0 has each row looked up by the key's index, as PostgreSQL does itself when the row goes: a
        join might read the whole of the other table for each sweep.
        """
        conditions: list[sql.Composable] = [pair.predicate for pair in self.pairs]
        if self.within:  # a row that refers to nothing but itself may go
            conditions.append(sql.SQL("(c.tableoid, c.ctid) <> (t.tableoid, t.ctid)"))
        exists = sql.SQL("EXISTS (SELECT FROM {}{} AS c WHERE {} OFFSET 0)").format(
            sql.SQL("" if self.partitioned else "ONLY "),
            sql.Identifier(doubled(self.schema), doubled(self.table)),
            sql.SQL(" AND ").join(conditions),
        )
        if self.parts is None:
            return exists
        oids = [sql.SQL("{}::oid").format(sql.Literal(str(part))) for part in self.parts]
        parts = sql.SQL(", ").join(oids)
        return sql.SQL("(t.tableoid IN ({}) AND {})").format(parts, exists)


async def read_references(conn: AsyncConnection[Any], oid: int) -> tuple[Reference, ...]:
    """Return the foreign keys that keep rows of a table.

    Args:
        conn: Any connection.
        oid: The table.
    """
    found = await conn.execute(QUERIES["references"], {"oid": oid})
    return tuple(
        Reference(
            schema=schema,
            table=table,
            partitioned=partitioned,
            within=within,
            parts=None if parts is None else tuple(parts),
            pairs=tuple(
                Pair(
                    referred=pair["referred"],
                    referring=pair["referring"],
                    operator=tuple(pair["operator"]),
                    collation=pair["collation"] and tuple(pair["collation"]),
                )
                for pair in pairs
            ),
        )
        for schema, table, partitioned, within, parts, pairs in await found.fetchall()
    )


async def order_policies(conn: AsyncConnection[Any], policies: Iterable[Policy]) -> list[Policy]:
    """Return policies in the order in which they are carried out: what refers to a table comes before it.

    Where tables refer to each other in a circle, and otherwise, it is the order that they were declared in.

    Args:
        conn: Any connection.
        policies: As they were declared.
    """
    left = list(policies)
    found = await conn.execute(
        QUERIES["referring_policies"],
        {
            "names": [policy.name for policy in left],
            "tables": [policy.table for policy in left],
            "schemas": [policy.schema for policy in left],
        },
    )
    pairs = await found.fetchall()
    ordered: list[Policy] = []
    while left:
        waiting = {policy.name for policy in left}
        blocked = {referred for referring, referred in pairs if referring in waiting}
        first = next((policy for policy in left if policy.name not in blocked), left[0])
        left.remove(first)
        ordered.append(first)
    return ordered

"""Rows that are kept because others reference them, by foreign keys with NO ACTION or RESTRICT.

Such rows are not eligible: otherwise one of them would fail the delete of all the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from watchkeeper.retention._queries import QUERIES, escape_percent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import AsyncConnection

    from watchkeeper.retention._policy import Policy

# The characters of an operator's name, which no identifier can quote.
_OPERATOR_SIGNS: Final = {sign: sql.SQL(escape_percent(sign)) for sign in "+-*/<>=~!@#%^&|`?"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A referenced column and the referencing one, with the operator and collation that compare them."""

    referred: str
    referring: str
    operator: tuple[str, str]  # schema and name
    collation: tuple[str, str] | None  # where the two columns differ in theirs

    @property
    def predicate(self) -> sql.Composed:
        """Whether a row `c` refers to a row `t` by this pair."""
        schema, name = self.operator
        collate = sql.Composed([])
        if self.collation is not None:
            collate = sql.SQL(" COLLATE {}").format(sql.Identifier(*map(escape_percent, self.collation)))
        return sql.SQL("t.{}{} OPERATOR({}.{}) c.{}").format(
            sql.Identifier(escape_percent(self.referred)),
            collate,
            sql.Identifier(escape_percent(schema)),
            sql.Composed([_OPERATOR_SIGNS[sign] for sign in name]),
            sql.Identifier(escape_percent(self.referring)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A foreign key that keeps the rows it references."""

    schema: str  # of the referencing table
    table: str
    partitioned: bool  # tables that inherit from a plain one do not share the key
    internal: bool  # whether the referencing rows are in the pruned table themselves
    children: tuple[int, ...] | None  # oids of the child tables that the key refers to; None for all
    pairs: tuple[Pair, ...]

    @property
    def predicate(self) -> sql.Composed:
        """Whether any row refers to a row `t`.

        OFFSET 0 makes PostgreSQL look each row up by the key's index, as it does itself for a delete: a join
        might read the whole referencing table for each batch.
        """
        conditions: list[sql.Composable] = [pair.predicate for pair in self.pairs]
        if self.internal:  # a row that refers only to itself may be deleted
            conditions.append(sql.SQL("(c.tableoid, c.ctid) <> (t.tableoid, t.ctid)"))
        exists = sql.SQL("EXISTS (SELECT FROM {}{} AS c WHERE {} OFFSET 0)").format(
            sql.SQL("" if self.partitioned else "ONLY "),
            sql.Identifier(escape_percent(self.schema), escape_percent(self.table)),
            sql.SQL(" AND ").join(conditions),
        )
        if self.children is None:
            return exists
        oids = sql.SQL(", ").join(sql.SQL("{}::oid").format(sql.Literal(str(oid))) for oid in self.children)
        return sql.SQL("(t.tableoid IN ({}) AND {})").format(oids, exists)


async def read_references(conn: AsyncConnection[Any], oid: int) -> tuple[Reference, ...]:
    """Return the foreign keys that keep rows of a table."""
    found = await conn.execute(QUERIES["references"], {"oid": oid})
    return tuple(
        Reference(
            schema=schema,
            table=table,
            partitioned=partitioned,
            internal=internal,
            children=None if children is None else tuple(children),
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
        for schema, table, partitioned, internal, children, pairs in await found.fetchall()
    )


async def order_policies(conn: AsyncConnection[Any], policies: Iterable[Policy]) -> list[Policy]:
    """Return the policies with referencing tables before referenced ones, otherwise in their order."""
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

"""The columns of a table, as they are written to an archive and read back.

A row is a JSON object of column and text, by the type's own output function, which pg_dump relies on too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql
from psycopg.rows import class_row

from watchkeeper.retention._queries import QUERIES, escape_percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import LiteralString

    from psycopg import AsyncConnection

# json_to_recordset() would take a document for a JSON string: it is read as text and cast.
_DOCUMENTS: Final[Mapping[str | None, LiteralString]] = {
    None: "r.{}",
    "json": "r.{}::json",
    "jsonb": "r.{}::jsonb",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column, with its names as in the catalog."""

    name: str
    type_schema: str
    type_name: str
    variable: bool  # whether its values differ in width
    generated: bool
    document: str | None  # json or jsonb if its type is one of these, or a domain over one

    @property
    def identifier(self) -> sql.Identifier:
        """Its name in a statement with parameters."""
        return sql.Identifier(escape_percent(self.name))


async def read_columns(conn: AsyncConnection[Any], oid: int) -> tuple[Column, ...]:
    """Return the columns of a table, which this transaction must have locked."""
    async with conn.cursor(row_factory=class_row(Column)) as cursor:
        await cursor.execute(QUERIES["columns"], {"oid": oid})
        return tuple(await cursor.fetchall())


def archive_placeholders(columns: Sequence[Column]) -> dict[str, sql.Composable]:
    """Return what fills the queries that read rows to be archived."""
    text = sql.SQL("CASE WHEN num_nulls(t.{0}) = 0 THEN concat(t.{0}) END AS {0}")
    width = sql.SQL("coalesce(pg_column_size(t.{}), 0)")
    widths = [width.format(column.identifier) for column in columns if column.variable]
    return {
        "texts": _join(text.format(column.identifier) for column in columns if not column.generated),
        "width": sql.SQL(" + ").join(widths) if widths else sql.SQL("0"),
    }


def restore_placeholders(columns: Sequence[Column]) -> dict[str, sql.Composable]:
    """Return what fills the query that inserts archived rows."""
    return {
        "columns": _join(column.identifier for column in columns),
        "values": _join(sql.SQL(_DOCUMENTS[column.document]).format(column.identifier) for column in columns),
        "typed": _join(sql.SQL("{} {}").format(column.identifier, _type(column)) for column in columns),
    }


def _type(column: Column) -> sql.Identifier:
    if column.document is not None:
        return sql.Identifier("pg_catalog", "text")
    return sql.Identifier(escape_percent(column.type_schema), escape_percent(column.type_name))


def _join(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)

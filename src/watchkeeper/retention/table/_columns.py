"""The columns of a table, as they are written to an archive and read back.

A row is a JSON object of column and text, the text being what the type's own output function writes: the same
that pg_dump relies on. Generated columns are left out; they follow from the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql
from psycopg.rows import class_row

from watchkeeper.retention._holds import doubled
from watchkeeper.retention._queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import LiteralString

    from psycopg import AsyncConnection

# json_to_recordset() would take a document for a JSON string: it is read as text, which is cast.
_DOCUMENTS: Final[Mapping[str | None, LiteralString]] = {
    None: "r.{}",
    "json": "r.{}::json",
    "jsonb": "r.{}::jsonb",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column.

    Args:
        name: As it stands in the catalogue.
        type_schema: Where its type is.
        type_name: Its type, as it stands in the catalogue.
        variable: Whether its values differ in width.
        generated: Whether it follows from others.
        document: json or jsonb, where it is one of them, also under a domain.
    """

    name: str
    type_schema: str
    type_name: str
    variable: bool
    generated: bool
    document: str | None

    @property
    def identifier(self) -> sql.Identifier:
        """Its name in a statement with parameters."""
        return sql.Identifier(doubled(self.name))


async def read_columns(conn: AsyncConnection[Any], oid: int) -> tuple[Column, ...]:
    """Return the columns of a table.

    Args:
        conn: The connection of a transaction that has the table locked, so that they stay.
        oid: The table's identity in the catalogue.
    """
    async with conn.cursor(row_factory=class_row(Column)) as cursor:
        await cursor.execute(QUERIES["columns"], {"oid": oid})
        return tuple(await cursor.fetchall())


def reading(columns: Sequence[Column]) -> dict[str, sql.Composable]:
    """Return what fills the queries that read rows for an archive.

    Args:
        columns: Of the table.
    """
    text = sql.SQL("CASE WHEN num_nulls(t.{0}) = 0 THEN concat(t.{0}) END AS {0}")
    width = sql.SQL("coalesce(pg_column_size(t.{}), 0)")
    widths = [width.format(column.identifier) for column in columns if column.variable]
    return {
        "texts": _listed(text.format(column.identifier) for column in columns if not column.generated),
        "width": sql.SQL(" + ").join(widths) if widths else sql.SQL("0"),
    }


def writing(columns: Sequence[Column]) -> dict[str, sql.Composable]:
    """Return what fills the query that puts rows back.

    Args:
        columns: Those that are written.
    """
    return {
        "columns": _listed(column.identifier for column in columns),
        "values": _listed(
            sql.SQL(_DOCUMENTS[column.document]).format(column.identifier) for column in columns
        ),
        "typed": _listed(sql.SQL("{} {}").format(column.identifier, _type(column)) for column in columns),
    }


def _type(column: Column) -> sql.Identifier:
    if column.document is not None:
        return sql.Identifier("pg_catalog", "text")
    return sql.Identifier(doubled(column.type_schema), doubled(column.type_name))


def _listed(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)

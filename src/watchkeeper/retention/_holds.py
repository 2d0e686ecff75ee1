"""Holds: rows that stay although their policy says otherwise, until somebody releases them.

A hold is a list of conditions on columns; a row that meets all of them is held. What it says is put into the
one predicate of plan and delete, in each transaction anew, so that a hold is in force the moment its command
returns. A hold that cannot be applied lets nothing be deleted.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql
from psycopg.rows import dict_row

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention._queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from psycopg import AsyncConnection

_COMPARE: Final = {
    "=": sql.SQL("="),
    "<>": sql.SQL("<>"),
    "<": sql.SQL("<"),
    "<=": sql.SQL("<="),
    ">": sql.SQL(">"),
    ">=": sql.SQL(">="),
}
_IN: Final = "in"
_NULL: Final = {"is null": sql.SQL("IS NULL"), "is not null": sql.SQL("IS NOT NULL")}
OPERATORS: Final = (*_COMPARE, _IN, *_NULL)

_WRITTEN: Final = re.compile(
    r"""\s*(?:"(?P<quoted>[^"]+)"|(?P<plain>\w+))\s*"""
    r"""(?P<operator><=|>=|<>|!=|=|<|>|in\b|is\s+null\b|is\s+not\s+null\b)\s*(?P<rest>(?![=<>!]).*?)\s*""",
    re.IGNORECASE | re.DOTALL,
)
_NO_TEXT: Final = re.compile(r"[\x00\ud800-\udfff]")
_JOINED: Final = re.compile(r"\s(?:and|or)\s", re.IGNORECASE)
_ONE_EACH: Final = (
    "give --where once for each of several conditions that a row is to meet, and add a hold for each of"
    " several of which one is enough"
)
_QUOTED: Final = re.compile(r"'((?:[^']|'')*)'")


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What a held row meets: a column compared with a value.

    Args:
        column: Its name, as it stands in the catalogue.
        operator: One of `=`, `<>`, `<`, `<=`, `>`, `>=`, `in`, `is null`, `is not null`.
        values: What it is compared with, as PostgreSQL reads it for the column's type: one, several for `in`,
            none for the last two.

    Raises:
        ConfigurationError: It makes no sense.
    """

    column: str
    operator: str
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ConfigurationError(
                f"A hold compares by one of {', '.join(OPERATORS)}, not by {self.operator!r}."
            )
        if any(map(_NO_TEXT.search, (self.column, *self.values))):
            raise ConfigurationError(
                f"The condition on {self.column!r} holds a character that no text in PostgreSQL can hold."
            )
        wanted = (
            len(self.values) > 0 if self.operator == _IN else len(self.values) == (self.operator not in _NULL)
        )
        if not self.column or not wanted:
            raise ConfigurationError(
                f"The condition {self.column} {self.operator} takes"
                f" {'no value' if self.operator in _NULL else 'a value'}, not {list(self.values)}."
            )

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition as an operator writes it: `customer_id = 42`, `"Made At" < '2026-01-01'`.

        Args:
            text: A column, an operator and a value; several values for `in`, with commas between them.

        Raises:
            ConfigurationError: It cannot be read; the message says how to write it.
        """
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise ConfigurationError(
                f"{text!r} is no condition: write COLUMN OPERATOR VALUE, such as customer_id = 42, with one"
                f" of {', '.join(OPERATORS)}."
            )
        operator = " ".join(found["operator"].lower().split()).replace("!=", "<>")
        rest = found["rest"]
        values: list[str] = []
        if operator == _IN:
            values = [_value(part) for part in _parts(rest.removeprefix("(").removesuffix(")"))]
        elif rest and operator not in _NULL:
            values = [_value(rest)]
        elif rest:
            raise ConfigurationError(f"The condition {text!r} ends after {operator}: {_ONE_EACH}.")
        return cls(column=found["quoted"] or found["plain"], operator=operator, values=tuple(values))

    def __str__(self) -> str:
        values = ", ".join(f"'{value}'" for value in self.values)
        if self.operator == _IN:
            values = f"({values})"
        return f"{self.column} {self.operator} {values}".rstrip()

    @property
    def predicate(self) -> sql.Composed:
        """The condition in a statement with parameters, on a row `t`."""
        column = sql.SQL("t.{}").format(sql.Identifier(doubled(self.column)))
        if self.operator in _NULL:
            return sql.SQL("{} {}").format(column, _NULL[self.operator])
        values = sql.SQL(", ").join(sql.Literal(doubled(value)) for value in self.values)
        if self.operator == _IN:
            return sql.SQL("{} IN ({})").format(column, values)
        return sql.SQL("{} {} {}").format(column, _COMPARE[self.operator], values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """A hold, as the database has it.

    Args:
        id: Its number.
        table_name: The policy's name.
        conditions: A row that meets all of them is held; without any, each row is.
        reason: Why.
        owner: Who wants it.
        created_at: Since when it is in force.
        until: When it ends by itself; None if it has to be released.
        released_at: When it was released; None while it is in force.
        released_by: Who released it.
    """

    id: int
    table_name: str
    conditions: tuple[Condition, ...]
    reason: str
    owner: str
    created_at: datetime
    until: datetime | None
    released_at: datetime | None
    released_by: str | None

    @property
    def predicate(self) -> sql.Composable:
        """Which rows are held, on a row `t`."""
        if not self.conditions:
            return sql.SQL("true")
        return sql.SQL(" AND ").join(condition.predicate for condition in self.conditions)

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions)) or "every row"


def doubled(text: str) -> str:
    """Return text as it stands in a statement with parameters, where one % begins a parameter."""
    return text.replace("%", "%%")


async def read_holds(
    conn: AsyncConnection[Any], tables: Iterable[str], *, ended: bool = False
) -> tuple[Hold, ...]:
    """Return the holds on these tables, the first one first.

    Args:
        conn: Any connection.
        tables: Names of policies.
        ended: Also those that are over.
    """
    return await _fetch(conn, "holds", {"tables": list(tables), "all": ended})


async def add_hold(  # noqa: PLR0913 - what a hold is made of
    conn: AsyncConnection[Any],
    table: str,
    conditions: Iterable[Condition],
    *,
    reason: str,
    owner: str,
    until: datetime | None,
) -> Hold:
    """Note a hold: it is in force when the transaction commits, also for a run that is going on.

    Args:
        conn: The connection of a transaction of its own.
        table: Name of a registered policy.
        conditions: A row that meets all of them is held.
        reason: Why.
        owner: Who wants it.
        until: When it ends by itself.
    """
    parameters = {
        "table": table,
        "conditions": json.dumps([asdict(condition) for condition in conditions]),
        "reason": reason,
        "owner": owner,
        "until": until,
    }
    await conn.execute(QUERIES["lock_policy"], {"table": table})
    await conn.execute(QUERIES["lock_open_run"], {"table": table})
    (hold,) = await _fetch(conn, "add_hold", parameters)
    return hold


async def release_hold(conn: AsyncConnection[Any], hold: int, *, released_by: str) -> Hold | None:
    """End a hold; None if there is none of this number that is in force.

    Args:
        conn: The connection of a transaction of its own.
        hold: Its number.
        released_by: Who releases it.
    """
    ended = await _fetch(conn, "release_hold", {"hold": hold, "released_by": released_by})
    return ended[0] if ended else None


async def _fetch(conn: AsyncConnection[Any], query: str, given: Mapping[str, object]) -> tuple[Hold, ...]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(QUERIES[query], given)
        rows = await cursor.fetchall()
    return tuple(Hold(**row | {"conditions": _conditions(row["conditions"])}) for row in rows)


def _conditions(stored: list[dict[str, Any]]) -> tuple[Condition, ...]:
    return tuple(
        Condition(column=one["column"], operator=one["operator"], values=tuple(one["values"]))
        for one in stored
    )


def _parts(text: str) -> list[str]:
    """Divide at the commas that stand outside of quotes."""
    parts, start, inside = [], 0, False
    for at, character in enumerate(text):
        if character == "'":
            inside = not inside
        elif character == "," and not inside:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _value(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        return quoted[1].replace("''", "'")
    if text.lower() == "null":
        raise ConfigurationError(
            "No value is equal to NULL, nor different from it: write `is null` or `is not null`; or 'null' in"
            " quotes, if that text is meant."
        )
    if _JOINED.search(text):
        raise ConfigurationError(
            f"{text!r} looks like several conditions: {_ONE_EACH}; put the value in single quotes if it is"
            " meant as text."
        )
    return text

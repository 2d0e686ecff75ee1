"""Holds: rows that are kept although their policy would delete them, until the hold is released.

Each transaction reads the holds again: a hold is in force when its command returns. A hold that cannot be
applied stops all deletes from its table.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql
from psycopg.rows import dict_row

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention._queries import QUERIES, escape_percent

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
_OPERATORS: Final = (*_COMPARE, _IN, *_NULL)

_CONDITION: Final = re.compile(
    r"""\s*(?:"(?P<quoted>[^"]+)"|(?P<plain>\w+))\s*"""
    r"""(?P<operator><=|>=|<>|!=|=|<|>|in\b|is\s+null\b|is\s+not\s+null\b)\s*(?P<rest>(?![=<>!]).*?)\s*""",
    re.IGNORECASE | re.DOTALL,
)
_NOT_TEXT: Final = re.compile(r"[\x00\ud800-\udfff]")
_AND_OR: Final = re.compile(r"\s(?:and|or)\s", re.IGNORECASE)
_QUOTED: Final = re.compile(r"'((?:[^']|'')*)'")
_ONE_EACH: Final = (
    "repeat --where for each condition that a row has to meet, and add a hold for each alternative"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """A comparison of a column with a value, which held rows meet.

    Args:
        column: The column's name as in the catalog.
        operator: One of `=`, `<>`, `<`, `<=`, `>`, `>=`, `in`, `is null`, `is not null`.
        values: The values as PostgreSQL reads them for the column's type: one, several for `in`, none for
            `is null` and `is not null`.

    Raises:
        ConfigurationError: The operator is unknown, or its values do not fit.
    """

    column: str
    operator: str
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.operator not in _OPERATORS:
            raise ConfigurationError(
                f"A hold compares by one of {', '.join(_OPERATORS)}, not by {self.operator!r}."
            )
        if any(map(_NOT_TEXT.search, (self.column, *self.values))):
            raise ConfigurationError(
                f"The condition on {self.column!r} has a character that no text in PostgreSQL can have."
            )
        if self.operator == _IN:
            fits = len(self.values) > 0
        else:
            fits = len(self.values) == (self.operator not in _NULL)
        if not self.column or not fits:
            raise ConfigurationError(
                f"The condition {self.column} {self.operator} takes"
                f" {'no value' if self.operator in _NULL else 'a value'}, not {list(self.values)}."
            )

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse a condition as an operator writes it: `customer_id = 42`, `"Made At" < '2026-01-01'`.

        Args:
            text: A column, an operator and a value; for `in` several values, separated by commas.

        Raises:
            ConfigurationError: It cannot be parsed; the message says how to write it.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise ConfigurationError(
                f"{text!r} is not a condition: write COLUMN OPERATOR VALUE, such as customer_id = 42, with"
                f" one of {', '.join(_OPERATORS)}."
            )
        operator = " ".join(found["operator"].lower().split()).replace("!=", "<>")
        rest = found["rest"]
        values: list[str] = []
        if operator == _IN:
            values = [_parse_value(part) for part in _split(rest.removeprefix("(").removesuffix(")"))]
        elif rest and operator not in _NULL:
            values = [_parse_value(rest)]
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
        """The condition on a row `t`, in a statement with parameters."""
        column = sql.SQL("t.{}").format(sql.Identifier(escape_percent(self.column)))
        if self.operator in _NULL:
            return sql.SQL("{} {}").format(column, _NULL[self.operator])
        values = sql.SQL(", ").join(sql.Literal(escape_percent(value)) for value in self.values)
        if self.operator == _IN:
            return sql.SQL("{} IN ({})").format(column, values)
        return sql.SQL("{} {} {}").format(column, _COMPARE[self.operator], values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """A hold as recorded in the database.

    Args:
        id: Its number.
        table_name: The policy's name.
        conditions: A row that meets all of them is held; without any, every row is.
        reason: Why the rows are held.
        owner: Who asked for it.
        created_at: When it came into force.
        until: When it expires; None if it has to be released.
        released_at: When it was released; None if it was not.
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
        """Whether a row `t` is held, in a statement with parameters."""
        if not self.conditions:
            return sql.SQL("true")
        return sql.SQL(" AND ").join(condition.predicate for condition in self.conditions)

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions)) or "every row"


async def read_holds(
    conn: AsyncConnection[Any], tables: Iterable[str], *, ended: bool = False
) -> tuple[Hold, ...]:
    """Return the holds on the tables of these policies, oldest first; with `ended`, also past ones."""
    return await _fetch(conn, "holds", {"tables": list(tables), "all": ended})


async def add_hold(  # noqa: PLR0913 - the fields of a hold
    conn: AsyncConnection[Any],
    table: str,
    conditions: Iterable[Condition],
    *,
    reason: str,
    owner: str,
    until: datetime | None,
) -> Hold:
    """Add a hold. It takes effect when the transaction commits, for the current run too."""
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
    """Release a hold by its number; None if no such hold is in force."""
    released = await _fetch(conn, "release_hold", {"hold": hold, "released_by": released_by})
    return released[0] if released else None


async def _fetch(
    conn: AsyncConnection[Any], query: str, parameters: Mapping[str, object]
) -> tuple[Hold, ...]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(QUERIES[query], parameters)
        rows = await cursor.fetchall()
    return tuple(Hold(**row | {"conditions": _load_conditions(row["conditions"])}) for row in rows)


def _load_conditions(stored: list[dict[str, Any]]) -> tuple[Condition, ...]:
    return tuple(
        Condition(column=one["column"], operator=one["operator"], values=tuple(one["values"]))
        for one in stored
    )


def _split(text: str) -> list[str]:
    """Split at the commas outside of quotes."""
    parts, start, quoted = [], 0, False
    for at, character in enumerate(text):
        if character == "'":
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _parse_value(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        return quoted[1].replace("''", "'")
    if text.lower() == "null":
        raise ConfigurationError(
            "No value equals NULL or differs from it: write `is null` or `is not null`; or 'null' in quotes"
            " for that text."
        )
    if _AND_OR.search(text):
        raise ConfigurationError(
            f"{text!r} looks like several conditions: {_ONE_EACH}; put the value in single quotes if it is"
            " text."
        )
    return text

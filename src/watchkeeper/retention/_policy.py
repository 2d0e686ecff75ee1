"""What is kept how long: one policy for each table, checked when it is declared."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final

from psycopg import sql

from watchkeeper.exceptions import ConfigurationError, PolicyRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

AUDIT_TABLE: Final = "audit_log"
# A run that deleted from one of these would delete the evidence of what was deleted.
PROTECTED_TABLES: Final = (
    AUDIT_TABLE,
    "retention_policies",
    "retention_runs",
    "retention_holds",
    "retention_archives",
    "watchkeeper_migrations",
)

# A shorter duration is a mistake of units (seconds for days), and no daily job could keep to it.
SHORTEST_KEEP: Final = timedelta(days=1)
LONGEST_KEEP: Final = timedelta(days=36_525)

_IDENTIFIER_BYTES: Final = 63
_NOT_PLAIN: Final = re.compile(r'[."\x00-\x1f\ud800-\udfff]')


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Deletes the rows of one table that are older than `keep`.

    Args:
        table: The table's name as in the catalog: without quotes and without its schema.
        age_column: A `timestamp with time zone` column with the age of a row; rows without an age are kept.
        keep: How long rows are kept, at least a day; no default, because it deletes data.
        schema: The table's schema; default: the first one in the search path that has the table.
        archive: Whether rows are written to the archive before they are deleted, to be restored from there.

    Raises:
        PolicyRefusedError: The table may never be pruned: the audit log, or the library's own ledger.
        ConfigurationError: A name or a duration is not valid.
    """

    table: str
    age_column: str
    keep: timedelta
    schema: str | None = None
    archive: bool = False

    def __post_init__(self) -> None:
        _refuse_protected(self.table)
        _check_identifier("table", self.table)
        _check_identifier("age_column", self.age_column)
        if self.schema is not None:
            _check_identifier("schema", self.schema)
        if not isinstance(self.keep, timedelta):
            raise ConfigurationError(
                f"The policy on {self.table} takes keep as a timedelta, such as days=30."
            )
        if not SHORTEST_KEEP <= self.keep <= LONGEST_KEEP:
            raise ConfigurationError(
                f"The policy on {self.table} keeps rows for {self.keep}: take at least a day and at most 100"
                " years (rows that are kept for ever need no policy)."
            )

    @property
    def name(self) -> str:
        """The table's name in the ledger, in lines, metrics and audit entries."""
        return self.table if self.schema is None else f"{self.schema}.{self.table}"

    @property
    def identifier(self) -> sql.Identifier:
        """The table as a quoted identifier."""
        return sql.Identifier(self.table) if self.schema is None else sql.Identifier(self.schema, self.table)

    def horizon(self, now: datetime) -> datetime:
        """Return the instant before which rows are deleted, in UTC: elsewhere not all days have 24 hours."""
        return now.astimezone(UTC) - self.keep


def check_policies(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    """Return the policies; raise PolicyRefusedError if two are, or may be, on the same table."""
    declared = tuple(policies)
    for index, policy in enumerate(declared):
        for other in declared[:index]:
            if policy.table == other.table and (
                policy.schema == other.schema or None in {policy.schema, other.schema}
            ):
                raise PolicyRefusedError(
                    f"There are two policies on {policy.table}: remove one, or name the schema of both if"
                    " these are two tables."
                )
    return declared


def select_policies(policies: Iterable[Policy], names: Iterable[str] | None) -> list[Policy]:
    """Return the policies with these names, in that order; all for None."""
    known = {policy.name: policy for policy in policies}
    if names is None:
        return list(known.values())
    selected = dict.fromkeys(names)
    for name in selected:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
            raise ConfigurationError(f"There is no policy on {name}. {hint}")
    return [known[name] for name in selected]


def _refuse_protected(table: object) -> None:
    if not isinstance(table, str):
        raise ConfigurationError("A policy takes its table as text, such as 'inbound_events'.")
    # In any spelling: quoted, in capitals, with a schema, surrounded by blanks.
    plain = table.rsplit(".", 1)[-1].strip(' \t\r\n"').casefold()
    if plain == AUDIT_TABLE:
        raise PolicyRefusedError(
            "The audit log is never pruned (compliance): remove the policy on audit_log. If entries must be"
            " deleted, the owner of the table has to do that outside this library."
        )
    if plain in PROTECTED_TABLES:
        raise PolicyRefusedError(
            f"{plain} is the record of what was pruned, and is kept: remove the policy on it."
        )


def _check_identifier(argument: str, name: object) -> None:
    if not isinstance(name, str) or not name or name != name.strip():
        raise ConfigurationError(f"A policy's {argument} is a name, not empty and without blanks around it.")
    if _NOT_PLAIN.search(name):
        raise ConfigurationError(
            f"A policy's {argument} is a plain name, not {name!r}: write it as in the catalog, without quotes"
            " and dots; the schema has its own argument."
        )
    if len(name.encode()) > _IDENTIFIER_BYTES:
        # PostgreSQL would truncate it, and mean another table.
        raise ConfigurationError(f"A policy's {argument} has more than {_IDENTIFIER_BYTES} bytes: {name!r}.")

"""What is kept how long: one policy a table, checked when it is declared."""

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
# What proves that rows went, and when: a run that deleted from it would delete its own evidence.
PROTECTED_TABLES: Final = (
    AUDIT_TABLE,
    "retention_policies",
    "retention_runs",
    "retention_holds",
    "retention_archives",
    "watchkeeper_migrations",
)

# A shorter time is a slip of units (seconds for days) rather than a wish, and no daily job could keep it.
SHORTEST_KEEP: Final = timedelta(days=1)
LONGEST_KEEP: Final = timedelta(days=36_525)

_IDENTIFIER_BYTES: Final = 63
_NOT_PLAIN: Final = re.compile(r'[."\x00-\x1f\ud800-\udfff]')


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Rows of one table go when they are older than `keep`.

    Args:
        table: The table's name as it stands in the catalogue: without quotes, without its schema.
        age_column: A `timestamp with time zone` column that says how old a row is; rows without it are kept.
        keep: How long rows are kept, at least a day; there is no default, because it deletes data.
        schema: The table's schema; default: the first one in the search path that has the table.
        archive: Whether rows are written to the archive before they go, to be put back from there.

    Raises:
        PolicyRefusedError: The table may never be pruned: the audit log, or the library's own ledger.
        ConfigurationError: A name or a duration is not usable.
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
                f"The policy on {self.table} keeps rows for {self.keep}: take at least a day and at"
                " most 100 years (what is to be kept for ever needs no policy)."
            )

    @property
    def name(self) -> str:
        """The table in the ledger, in lines, metrics and audit entries."""
        return self.table if self.schema is None else f"{self.schema}.{self.table}"

    @property
    def identifier(self) -> sql.Identifier:
        """The table in a statement, quoted."""
        return sql.Identifier(self.table) if self.schema is None else sql.Identifier(self.schema, self.table)

    def horizon(self, now: datetime) -> datetime:
        """Return the age from which on rows are kept, in UTC: elsewhere not all days have 24 hours.

        Args:
            now: An instant with its time zone.
        """
        return now.astimezone(UTC) - self.keep


def check_policies(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    """Return the policies, when there is at most one for each table.

    Args:
        policies: As they were declared.

    Raises:
        PolicyRefusedError: Two of them are on one table, or may be: one names its schema, the other does not.
    """
    declared = tuple(policies)
    for index, policy in enumerate(declared):
        for other in declared[:index]:
            if policy.table == other.table and (
                policy.schema == other.schema or None in {policy.schema, other.schema}
            ):
                raise PolicyRefusedError(
                    f"There are two policies on {policy.table}: keep the one that is meant, or name the"
                    " schema of both if these are two tables."
                )
    return declared


def choose(policies: Iterable[Policy], tables: Iterable[str] | None) -> list[Policy]:
    """Return the policies of these names, in their order.

    Args:
        policies: What is declared.
        tables: Names of policies; None for all.

    Raises:
        ConfigurationError: There is no such policy; the message says what is near.
    """
    known = {policy.name: policy for policy in policies}
    if tables is None:
        return list(known.values())
    chosen = dict.fromkeys(tables)
    for table in chosen:
        if table not in known:
            near = difflib.get_close_matches(table, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
            raise ConfigurationError(f"There is no policy on {table}. {hint}")
    return [known[table] for table in chosen]


def _refuse_protected(table: object) -> None:
    if not isinstance(table, str):
        raise ConfigurationError("A policy takes its table as text, such as 'inbound_events'.")
    # However it is spelled: quoted, in capitals, with a schema, with blanks around it.
    plain = table.rsplit(".", 1)[-1].strip(' \t\r\n"').casefold()
    if plain == AUDIT_TABLE:
        raise PolicyRefusedError(
            "The audit log is never pruned (compliance): remove the policy on audit_log. What must go from it"
            " goes by an operator's decision, as the owner of the table, outside this library."
        )
    if plain in PROTECTED_TABLES:
        raise PolicyRefusedError(
            f"{plain} is the record of what was pruned, and is kept: remove the policy on it."
        )


def _check_identifier(argument: str, name: object) -> None:
    if not isinstance(name, str) or not name or name != name.strip():
        raise ConfigurationError(f"A policy's {argument} is a name without blanks around it, and not empty.")
    if _NOT_PLAIN.search(name):
        raise ConfigurationError(
            f"A policy's {argument} is a plain name, not {name!r}: write it as it stands in the catalogue,"
            " without quotes and dots; the schema has its own argument."
        )
    if len(name.encode()) > _IDENTIFIER_BYTES:
        # PostgreSQL would cut it off and mean another table.
        raise ConfigurationError(f"A policy's {argument} has more than {_IDENTIFIER_BYTES} bytes: {name!r}.")

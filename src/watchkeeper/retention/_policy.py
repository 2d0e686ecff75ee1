"""Retention policies: how long each table's rows are kept; checked when they are declared."""

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

# A shorter duration is probably a unit mistake (seconds for days), and a daily job could not enforce it.
MIN_KEEP: Final = timedelta(days=1)
MAX_KEEP: Final = timedelta(days=36_525)

_MAX_NAME_BYTES: Final = 63
_FORBIDDEN_CHARACTERS: Final = re.compile(r'[."\x00-\x1f\ud800-\udfff]')


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Says that rows of one table older than `keep` are deleted.

    Args:
        table: The table's name as in the catalog: without quotes and without its schema.
        age_column: The timestamptz column that a row's age is measured from; rows where it is NULL are kept.
        keep: How long rows are kept, at least a day; required, because the policy deletes data.
        schema: The table's schema; default: the first one in the search path that has the table.
        archive: Whether rows are archived before they are deleted, so that they can be restored.

    Raises:
        PolicyRefusedError: The table may never be pruned: the audit log or one of the library's own tables.
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
                f"The policy on {self.table}: keep must be a timedelta, such as timedelta(days=30)."
            )
        if not MIN_KEEP <= self.keep <= MAX_KEEP:
            raise ConfigurationError(
                f"The policy on {self.table} keeps rows for {self.keep}: choose between 1 day and 100 years"
                " (rows that are kept indefinitely need no policy)."
            )

    @property
    def name(self) -> str:
        """The table's name in the ledger, log lines, metrics and audit entries."""
        return self.table if self.schema is None else f"{self.schema}.{self.table}"

    @property
    def identifier(self) -> sql.Identifier:
        """The table as a quoted identifier."""
        return sql.Identifier(self.table) if self.schema is None else sql.Identifier(self.schema, self.table)

    def horizon(self, now: datetime) -> datetime:
        """Return the instant before which rows are deleted, in UTC: local days may have 23 or 25 hours."""
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
                    f"There are two policies on {policy.table}: remove one, or set schema on both if they"
                    " are different tables."
                )
    return declared


def select_policies(policies: Iterable[Policy], names: Iterable[str] | None) -> list[Policy]:
    """Return the policies with these names, in the given order; all policies if `names` is None."""
    known = {policy.name: policy for policy in policies}
    if names is None:
        return list(known.values())
    selected = dict.fromkeys(names)
    for name in selected:
        if name not in known:
            matches = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {matches[0]}?" if matches else f"Known policies: {', '.join(known)}."
            raise ConfigurationError(f"There is no policy on {name}. {hint}")
    return [known[name] for name in selected]


def _refuse_protected(table: object) -> None:
    if not isinstance(table, str):
        raise ConfigurationError("A policy's table must be a string, such as 'inbound_events'.")
    # Ignore quotes, case, the schema and surrounding whitespace.
    plain = table.rsplit(".", 1)[-1].strip(' \t\r\n"').casefold()
    if plain == AUDIT_TABLE:
        raise PolicyRefusedError(
            "The audit log cannot be pruned, for compliance: remove the policy on audit_log. If entries"
            " must be deleted, the owner of the table must do it outside this library."
        )
    if plain in PROTECTED_TABLES:
        raise PolicyRefusedError(
            f"{plain} records what was pruned and cannot itself be pruned: remove its policy."
        )


def _check_identifier(argument: str, name: object) -> None:
    if not isinstance(name, str) or not name or name != name.strip():
        raise ConfigurationError(f"A policy's {argument} must be a non-empty name without outer whitespace.")
    if _FORBIDDEN_CHARACTERS.search(name):
        raise ConfigurationError(
            f"A policy's {argument} is a plain name, not {name!r}: write it as in the catalog, without quotes"
            " or dots; pass the schema separately."
        )
    if len(name.encode()) > _MAX_NAME_BYTES:
        # PostgreSQL would silently truncate it to a different name.
        raise ConfigurationError(f"A policy's {argument} has more than {_MAX_NAME_BYTES} bytes: {name!r}.")

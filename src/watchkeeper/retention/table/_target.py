"""The table of a policy: looked up in the catalog, and refused if deleting from it is unsafe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, LiteralString

from psycopg import errors, sql

from watchkeeper.exceptions import PolicyRefusedError, RetentionError
from watchkeeper.retention._holds import Hold, read_holds
from watchkeeper.retention._policy import PROTECTED_TABLES
from watchkeeper.retention._queries import QUERIES, escape_percent
from watchkeeper.retention.table._references import Reference, read_references

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from watchkeeper.retention._policy import Policy

_AGE_TYPE: Final = "timestamp with time zone"

_REFUSALS: Final = {
    "protected": "{table} belongs to {detail}, which is never pruned (compliance): remove the policy.",
    "kind": "{table} is {detail}: a policy needs a table.",
    "cascade": "deleting from {table} also deletes from {detail}, uncounted: give that table a policy of its"
    " own, and make its foreign key ON DELETE RESTRICT.",
    "unindexed": "each row deleted from {table} would search all of {detail}: create an index on the columns"
    " of that foreign key.",
    "rule": "the rule {detail} on {table} changes what a DELETE does: drop it, or remove the policy.",
    "schema": "the service has no access to the schema of {table}. As its owner: {detail};",
    "privileges": "the service lacks {detail};",
    "child schema": "its rows are referred to from a schema that the service has no access to. As its owner:"
    " {detail};",
    "child": "the service cannot see which of its rows are referred to from {detail};",
    "row security": "row-level security on {detail} hides rows from the service: let it bypass that, or"
    " remove the policy.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A table that may be pruned; `name` is the policy's."""

    name: str
    oid: int
    table: sql.Identifier
    age_column: str
    age: sql.Identifier
    index: str | None  # name of an index that begins with the age column
    has_children: bool  # whether it has partitions, or tables that inherit from it
    has_delete_triggers: bool = False  # its own or those of foreign keys
    archived: bool = False  # whether its rows are archived before they are deleted
    holds: tuple[Hold, ...] = ()
    references: tuple[Reference, ...] = ()

    @property
    def indexed(self) -> bool:
        """Whether an index begins with the age column."""
        return self.index is not None

    @property
    def self_referencing(self) -> bool:
        """Whether rows reference rows of the same table, which become eligible only after them."""
        return any(reference.internal for reference in self.references)

    @property
    def old(self) -> sql.Composed:
        """Whether a row is older than the horizon; a row without a timestamp is not."""
        return sql.SQL("t.{} < %(horizon)s").format(self.age)

    @property
    def held(self) -> sql.Composed:
        """Whether a hold keeps a row."""
        held = sql.SQL(" OR ").join(sql.SQL("({})").format(hold.predicate) for hold in self.holds)
        return sql.SQL("({}) IS TRUE").format(held if self.holds else sql.SQL("false"))

    @property
    def referenced(self) -> sql.Composed:
        """Whether other rows refer to a row, and so keep it."""
        predicates = [reference.predicate for reference in self.references]
        return sql.SQL("({})").format(sql.SQL(" OR ").join(predicates) if predicates else sql.SQL("false"))

    @property
    def eligible(self) -> sql.Composed:
        """Whether a row is to be deleted: the predicate that plan and delete share."""
        eligible = sql.SQL("{} AND NOT {}").format(self.old, self.held) if self.holds else self.old
        return sql.SQL("{} AND NOT {}").format(eligible, self.referenced) if self.references else eligible

    def fill(self, query: LiteralString, **more: sql.Composable) -> sql.Composed:
        """Return a query about this table, to be executed with parameters."""
        return sql.SQL(query).format(
            table=self.table,
            age=self.age,
            old=self.old,
            held=self.held,
            referenced=self.referenced,
            eligible=self.eligible,
            **more,
        )

    async def with_holds(self, conn: AsyncConnection[Any]) -> Target:
        """Return the table with the holds in force in this transaction; raises if one cannot be applied."""
        holds = await read_holds(conn, [self.name])
        if holds == self.holds:
            return self
        target = replace(self, holds=holds)
        if await target.find_hold_error(conn) is None:
            return target
        for hold in holds:
            problem = await replace(self, holds=(hold,)).find_hold_error(conn)
            if problem is not None:
                raise RetentionError(
                    f"Nothing is deleted from {self.name}, because hold {hold.id} on it cannot be applied:"
                    f" {problem}. Release it (`retention hold release {hold.id}`), or fix the table."
                )
        raise AssertionError("holds that cannot be applied together cannot be applied one by one")

    async def find_hold_error(self, conn: AsyncConnection[Any]) -> str | None:
        """Return the database's message why the holds cannot be applied; None if they can."""
        try:
            async with conn.transaction():
                await conn.execute(QUERIES["set_time_format"])
                await conn.execute(self.fill(QUERIES["check_holds"]), {})
        except (errors.ProgrammingError, errors.DataError) as error:
            parts = (error.diag.message_primary or str(error), error.diag.message_hint)
            return " ".join(": ".join(part.rstrip(".") for part in parts if part).split())
        return None


async def find_target(conn: AsyncConnection[Any], policy: Policy) -> Target:
    """Look up the policy's table, and check that it can be pruned; the error says how to fix that."""
    found = await conn.execute(QUERIES["find_table"], {"table": policy.table, "schema": policy.schema})
    row = await found.fetchone()
    if row is None:
        raise RetentionError(
            f"There is no table {policy.name} that the service can see: create it, or remove its policy."
        )
    oid, schema, table, has_children, has_delete_triggers = row
    if policy.archive:
        await _check_restorable(conn, oid, policy)
    parameters = {"oid": oid, "protected": list(PROTECTED_TABLES)}
    obstacle = await (await conn.execute(QUERIES["obstacles"], parameters)).fetchone()
    if obstacle is not None:
        kind, detail = obstacle
        raise _refuse(policy, _REFUSALS[kind].format(table=policy.name, detail=detail))
    return Target(
        name=policy.name,
        oid=oid,
        table=sql.Identifier(escape_percent(schema), escape_percent(table)),
        age_column=policy.age_column,
        age=sql.Identifier(escape_percent(policy.age_column)),
        index=await _find_index(conn, oid, policy),
        has_children=has_children,
        has_delete_triggers=has_delete_triggers,
        archived=policy.archive,
        references=await read_references(conn, oid),
    )


async def _check_restorable(conn: AsyncConnection[Any], oid: int, policy: Policy) -> None:
    """Refuse a policy whose archived rows could not be restored."""
    heir = await (await conn.execute(QUERIES["inheriting_tables"], {"oid": oid})).fetchone()
    if heir is not None:
        raise _refuse(
            policy,
            f"its rows are archived, and those of {heir[0]}, which inherits from it, could not be restored"
            " to where they were. Give that table its own policy, and end the inheritance; or do not"
            " archive.",
        )
    key = await (await conn.execute(QUERIES["deferrable_key"], {"oid": oid})).fetchone()
    if key is not None:
        raise _refuse(
            policy,
            f"its rows are archived, and could not be restored because of the deferrable key {key[0]}: make"
            " it NOT DEFERRABLE, or do not archive.",
        )


async def _find_index(conn: AsyncConnection[Any], oid: int, policy: Policy) -> str | None:
    parameters = {"oid": oid, "column": policy.age_column}
    row = await (await conn.execute(QUERIES["find_age_column"], parameters)).fetchone()
    if row is None:
        raise RetentionError(
            f"The table {policy.name} has no column {policy.age_column}: name the one with the age of a row."
        )
    kind, index = row
    if kind != _AGE_TYPE:
        # The meaning of a timestamp without a zone depends on its writer: it may be off by hours.
        raise _refuse(
            policy,
            f"its column {policy.age_column} is a {kind}, and the age of a row has to be a {_AGE_TYPE}.",
        )
    return None if index is None else str(index)


def _refuse(policy: Policy, reason: str) -> PolicyRefusedError:
    return PolicyRefusedError(f"{policy.name} is not pruned: {reason}")

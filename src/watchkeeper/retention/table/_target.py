"""The table that a policy means: found in the catalogue, and refused where a delete is not what it seems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, LiteralString

from psycopg import errors, sql

from watchkeeper.exceptions import PolicyRefusedError, RetentionError
from watchkeeper.retention._holds import Hold, doubled, read_holds
from watchkeeper.retention._policy import PROTECTED_TABLES
from watchkeeper.retention._queries import QUERIES
from watchkeeper.retention.table._references import Reference, read_references

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from watchkeeper.retention._policy import Policy

_AGE_TYPE: Final = "timestamp with time zone"

_REFUSALS: Final = {
    "protected": "{table} belongs to {detail}, which is never pruned (compliance): remove the policy.",
    "kind": "{table} is {detail}: a policy takes a table.",
    "cascade": "deleting from {table} also deletes from {detail}, uncounted: prune that table by a policy of"
    " its own, and make its foreign key ON DELETE RESTRICT.",
    "unindexed": "each row deleted from {table} would search all of {detail}: make an index on the columns of"
    " that foreign key.",
    "rule": "the rule {detail} on {table} changes what a DELETE does: drop it, or the policy.",
    "schema": "the service may not look into the schema of {table}. As its owner: {detail};",
    "privileges": "the service lacks {detail};",
    "child schema": "its rows are referred to from a schema that the service may not look into. As its owner:"
    " {detail};",
    "child": "the service may not see which of its rows are referred to from {detail};",
    "row security": "row-level security on {detail} hides rows from the service: let it bypass that, or drop"
    " the policy.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A table that may be pruned.

    Args:
        name: The policy's name.
        oid: The table's identity in the catalogue.
        table: The table, with its schema, quoted.
        age_column: The age column, as it stands in the catalogue.
        age: The same, quoted.
        index: Name of an index that leads with the age column; None without one.
        holds: What keeps rows of it.
        references: Foreign keys that keep rows of it as long as others refer to them.
        has_children: Whether its rows lie in several: partitions, or tables that inherit from it.
        triggered: Whether a trigger fires when rows are deleted, its own or a foreign key's.
        archived: Whether its rows are archived before they go.
    """

    name: str
    oid: int
    table: sql.Identifier
    age_column: str
    age: sql.Identifier
    index: str | None
    has_children: bool
    triggered: bool = False
    archived: bool = False
    holds: tuple[Hold, ...] = ()
    references: tuple[Reference, ...] = ()

    @property
    def indexed(self) -> bool:
        """Whether an index leads with the age column."""
        return self.index is not None

    @property
    def old(self) -> sql.Composed:
        """Whether a row is older than the horizon; one without an age is not older than anything."""
        return sql.SQL("t.{} < %(horizon)s").format(self.age)

    @property
    def held(self) -> sql.Composed:
        """Whether a hold keeps a row."""
        held = sql.SQL(" OR ").join(sql.SQL("({})").format(hold.predicate) for hold in self.holds)
        return sql.SQL("({}) IS TRUE").format(held if self.holds else sql.SQL("false"))

    @property
    def self_referencing(self) -> bool:
        """Whether rows of it refer to others of it: some may go only when the others are gone."""
        return any(reference.within for reference in self.references)

    @property
    def referenced(self) -> sql.Composed:
        """Whether a row stays because others refer to it."""
        predicates = [reference.predicate for reference in self.references]
        return sql.SQL("({})").format(sql.SQL(" OR ").join(predicates) if predicates else sql.SQL("false"))

    @property
    def eligible(self) -> sql.Composed:
        """The one predicate of plan and delete."""
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
        """Return the table with the holds that are in force now.

        Args:
            conn: The connection of the transaction that they are to hold in.

        Raises:
            RetentionError: One of them cannot be applied, so that nobody knows what it holds.
        """
        holds = await read_holds(conn, [self.name])
        if holds == self.holds:
            return self
        target = replace(self, holds=holds)
        if await target.why_not_applied(conn) is None:
            return target
        for hold in holds:
            why = await replace(self, holds=(hold,)).why_not_applied(conn)
            if why is not None:
                raise RetentionError(
                    f"Nothing is deleted from {self.name}, because hold {hold.id} on it cannot be applied:"
                    f" {why}. Release it (`retention hold release {hold.id}`), or mend the table."
                )
        raise AssertionError("what cannot be applied together cannot be applied one by one")

    async def why_not_applied(self, conn: AsyncConnection[Any]) -> str | None:
        """Return why the holds cannot be applied, as the database says it; None if they can.

        Args:
            conn: The connection of the transaction that they are to hold in.
        """
        try:
            async with conn.transaction():
                await conn.execute(QUERIES["meaning"])
                await conn.execute(self.fill(QUERIES["check_holds"]), {})
        except (errors.ProgrammingError, errors.DataError) as error:
            told = (error.diag.message_primary or str(error), error.diag.message_hint)
            return " ".join(": ".join(part.rstrip(".") for part in told if part).split())
        return None


async def find_target(conn: AsyncConnection[Any], policy: Policy) -> Target:
    """Look the policy's table up, and at what stands in its way.

    Args:
        conn: Any connection.
        policy: What was declared.

    Raises:
        PolicyRefusedError: It may not be pruned; the message says why and what mends it.
        RetentionError: The table or its age column does not exist.
    """
    found = await conn.execute(QUERIES["find_table"], {"table": policy.table, "schema": policy.schema})
    row = await found.fetchone()
    if row is None:
        raise RetentionError(
            f"There is no table {policy.name} that the service can see: create it, or remove its policy."
        )
    oid, schema, table, has_children, triggered = row
    if policy.archive and has_children:
        heir = await (await conn.execute(QUERIES["heirs"], {"oid": oid})).fetchone()
        if heir is not None:
            raise PolicyRefusedError(
                f"{policy.name} is not pruned: its rows are archived, and those of {heir[0]}, which inherits"
                " from it, could not be put back where they were. Give that table a policy of its own, and"
                " end the inheritance; or do without the archive."
            )
    if policy.archive:
        key = await (await conn.execute(QUERIES["deferrable_key"], {"oid": oid})).fetchone()
        if key is not None:
            raise PolicyRefusedError(
                f"{policy.name} is not pruned: its rows are archived, and could not be put back beside the"
                f" deferrable key {key[0]}: make it NOT DEFERRABLE, or do without the archive."
            )
    parameters = {"oid": oid, "protected": list(PROTECTED_TABLES)}
    obstacle = await (await conn.execute(QUERIES["obstacles"], parameters)).fetchone()
    if obstacle is not None:
        kind, detail = obstacle
        reason = _REFUSALS[kind].format(table=policy.name, detail=detail)
        raise PolicyRefusedError(f"{policy.name} is not pruned: {reason}")
    return Target(
        name=policy.name,
        oid=oid,
        table=sql.Identifier(doubled(schema), doubled(table)),
        age_column=policy.age_column,
        age=sql.Identifier(doubled(policy.age_column)),
        index=await _find_index(conn, oid, policy),
        has_children=has_children,
        triggered=triggered,
        archived=policy.archive,
        references=await read_references(conn, oid),
    )


async def _find_index(conn: AsyncConnection[Any], oid: int, policy: Policy) -> str | None:
    parameters = {"oid": oid, "column": policy.age_column}
    row = await (await conn.execute(QUERIES["find_age_column"], parameters)).fetchone()
    if row is None:
        raise RetentionError(
            f"The table {policy.name} has no column {policy.age_column}: name the one that says how old a"
            " row is."
        )
    kind, index = row
    if kind != _AGE_TYPE:
        # What a timestamp without a zone means depends on who wrote it: hours of rows, one way or the other.
        raise PolicyRefusedError(
            f"{policy.name} is not pruned: its column {policy.age_column} is a {kind}, and only a {_AGE_TYPE}"
            " says how old a row is."
        )
    return None if index is None else str(index)

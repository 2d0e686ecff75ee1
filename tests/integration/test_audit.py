"""The audit log on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from watchkeeper import audit

if TYPE_CHECKING:
    from support.postgres import DatabaseUrls
    from watchkeeper.database import Database


async def test_an_entry_is_read_back_as_it_was_written(database: Database) -> None:
    """What `append` writes is what `recent` returns."""
    async with database.transaction() as conn:
        entry_id = await audit.append(
            conn,
            actor_type="system",
            actor_id="retention-job",
            action="retention.prune",
            entity="inbound_events",
            payload={"deleted": 3},
        )
    async with database.connection() as conn:
        (entry,) = await audit.recent(conn)
    assert (entry.id, entry.actor_type, entry.actor_id) == (entry_id, "system", "retention-job")
    assert (entry.action, entry.entity, entry.entity_id) == ("retention.prune", "inbound_events", None)
    assert entry.payload == {"deleted": 3}


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_log SET actor_id = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"],
)
async def test_the_owner_cannot_change_the_log(any_urls: DatabaseUrls, statement: str) -> None:
    """The table's owner gets a sentence instead, on each supported server."""
    async with await psycopg.AsyncConnection.connect(any_urls.owner_url) as conn:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="audit_log is append-only"):
            await conn.execute(statement.encode())

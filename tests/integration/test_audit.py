"""Appending to the audit log and reading it on a real server."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

from support.postgres import DatabaseUrls
from watchkeeper import audit
from watchkeeper.database import Database
from watchkeeper.exceptions import AuditError

ENTRY: dict[str, Any] = {
    "actor_type": "agent",
    "actor_id": "moltbot",
    "action": "listing.search",
    "entity": "listings",
}


async def _written(database: Database, **fields: Any) -> audit.Entry:
    async with database.transaction() as conn:
        await audit.append(conn, **{**ENTRY, **fields})
    async with database.connection() as conn:
        return (await audit.recent(conn, limit=1))[0]


async def test_an_entry_is_read_back_as_it_was_written(database: Database) -> None:
    """`recent` returns what `append` wrote, with its id and time."""
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
    assert entry == audit.Entry(
        id=entry_id,
        actor_type="system",
        actor_id="retention-job",
        action="retention.prune",
        entity="inbound_events",
        entity_id=None,
        payload={"deleted": 3},
        created_at=entry.created_at,
    )
    assert abs(datetime.now(UTC) - entry.created_at) < timedelta(minutes=1)


async def test_an_entry_belongs_to_its_transaction(database: Database) -> None:
    """An entry that is rolled back is not in the log."""

    async def fail() -> None:
        async with database.transaction() as conn:
            await audit.append(conn, **ENTRY)
            raise ValueError("rolled back")

    with pytest.raises(ValueError, match="rolled back"):
        await fail()
    async with database.connection() as conn:
        assert await audit.recent(conn) == []


async def test_the_latest_come_first(database: Database) -> None:
    """This holds for all entries and for those of one entity."""
    async with database.transaction() as conn:
        ids = [await audit.append(conn, **{**ENTRY, "entity": entity}) for entity in "aabab"]
        assert [entry.id for entry in await audit.recent(conn, limit=2)] == [ids[4], ids[3]]
        assert [entry.id for entry in await audit.recent(conn, entity="a")] == [ids[3], ids[1], ids[0]]
        assert await audit.recent(conn, entity="c") == []


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_the_limit_is_checked(database: Database, limit: int) -> None:
    """A typing error does not load the whole log."""
    async with database.connection() as conn:
        with pytest.raises(AuditError, match="limit takes a number from 1 to 1000"):
            await audit.recent(conn, limit=limit)


async def test_the_callers_row_factory_does_not_matter(database_urls: DatabaseUrls) -> None:
    """A service that reads its rows as dicts can append and read."""
    connect = psycopg.AsyncConnection[dict[str, Any]].connect
    async with await connect(database_urls.url, row_factory=dict_row) as conn:
        entry_id = await audit.append(conn, **ENTRY)
        assert [entry.id for entry in await audit.recent(conn)] == [entry_id]
        assert await audit.protection(conn) == []


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        (None, {}),
        ({"n": float("nan"), "i": float("inf")}, {"n": None, "i": None}),
        ({"nul": "a\0b"}, {"nul": "a\\u0000b"}),
        ({"a\0b": 1}, {"a\\u0000b": 1}),
        ({"literal": "a\\u0000b"}, {"literal": "a\\u0000b"}),
        ({"lone": "a\ud800b"}, {"lone": "a\\ud800b"}),
        ({"big": 2**80}, {"big": 2**80}),
        ({"when": datetime(2026, 1, 2, tzinfo=UTC)}, {"when": "2026-01-02T00:00:00Z"}),
        ({"deep": {"set": {1}, "tuple": (1, "x")}}, {"deep": {"set": [1], "tuple": [1, "x"]}}),
    ],
)
async def test_a_payload_arrives_as_json(
    database: Database, payload: dict[str, Any] | None, stored: dict[str, Any]
) -> None:
    """What jsonb cannot represent is stored as text, the rest unchanged."""
    assert (await _written(database, payload=payload)).payload == stored


@settings(max_examples=60)
@given(
    fields=st.fixed_dictionaries(
        {
            "actor_type": st.sampled_from(["user", "agent", "system"]),
            "actor_id": st.text(max_size=300),
            "action": st.one_of(
                st.text(max_size=5), st.from_regex(r"[a-z][a-z0-9._-]{0,120}", fullmatch=True)
            ),
            "entity": st.text(max_size=300),
            "entity_id": st.none() | st.text(max_size=300),
        }
    ),
    payload=st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    ),
)
def test_accepted_arguments_are_stored(
    database_urls: DatabaseUrls, fields: dict[str, Any], payload: dict[str, Any]
) -> None:
    """Any arguments either raise before sending or become an entry."""

    async def attempt() -> None:
        async with await psycopg.AsyncConnection.connect(database_urls.url) as conn:
            try:
                entry_id = await audit.append(conn, **fields, payload=payload)
            except AuditError:
                return
            (entry,) = await audit.recent(conn, limit=1)
            assert entry.id == entry_id
            assert {name: getattr(entry, name) for name in fields} == fields

    asyncio.run(attempt())


async def test_a_discarded_entry_is_an_error(database_urls: DatabaseUrls, database: Database) -> None:
    """A rule of the owner that discards inserts is detected."""
    with psycopg.connect(database_urls.owner_url, autocommit=True) as conn:
        conn.execute("CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        conn.execute("CREATE TRIGGER a BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION drop_it()")
    async with database.connection() as service:
        with pytest.raises(AuditError, match="The database stored no entry"):
            await audit.append(service, **ENTRY)

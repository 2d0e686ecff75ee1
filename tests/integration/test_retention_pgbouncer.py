"""Retention behind a real PgBouncer in transaction mode, where no client has its own session."""

import asyncio
from contextlib import AsyncExitStack

from support.archive import ARCHIVED, archived
from support.pgbouncer import running_bouncer, through
from support.postgres import PostgresServer
from support.retention import RetentionDB, open_databases
from watchkeeper.database import Database


async def test_three_replicas_share_two_server_connections(db: RetentionDB, postgres: PostgresServer) -> None:
    """One run per table, exact counts, and no timeout setting stays on a connection."""
    db.make_contract_tables()
    db.fill("inbound_events", 45, 4000)
    await db.overdue()
    async with AsyncExitStack() as stack:
        url = through(stack.enter_context(running_bouncer(postgres)), db.urls).url
        databases = await open_databases(stack, url, 3, prepared_statements=False)
        replicas = [db.retention(database=database) for database in databases]
        results = await asyncio.gather(*(replica.tick() for replica in replicas))
        assert len(await replicas[0].plan()) == 2
        async with databases[0].connection() as conn:
            for setting, plain in (("statement_timeout", "0"), ("lock_timeout", "0"), ("row_security", "on")):
                assert await (await conn.execute(f"SHOW {setting}".encode())).fetchall() == [(plain,)]
    done = sorted((result.table, result.status, result.deleted) for some in results for result in some)
    assert done == [("chat_sessions", "completed", 2), ("inbound_events", "completed", 4003)]
    assert sum(entry["deleted"] for entry in db.audit_payloads()) == 4005


async def test_rows_are_archived_and_restored_behind_pgbouncer(
    db: RetentionDB, postgres: PostgresServer
) -> None:
    """Cursor, delete and restore need no session state."""
    db.make_table(old=5000)
    with running_bouncer(postgres) as bouncer:
        database = Database(through(bouncer, db.urls).url, prepared_statements=False)
        async with database:
            retention = db.retention(ARCHIVED, database=database)
            (result,) = await retention.run_now()
            assert (result.error, result.deleted, len(archived(db))) == (None, 5000, 5000)
            restored = await retention.operator.restore(1, restored_by="ann")
            async with database.connection() as conn:
                shown = await conn.execute("SHOW extra_float_digits")
                assert await shown.fetchall() == [("1",)]  # as the server has it, and no transaction of ours
    assert (restored.problems, restored.rows) == ((), 5000)

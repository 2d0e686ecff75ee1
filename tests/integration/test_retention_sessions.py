"""Retention in sessions with other settings: isolation levels, time zones, date styles."""

import asyncio
import dataclasses
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql

from support.archive import ARCHIVED
from support.postgres import PostgresServer
from support.retention import EVENTS, RetentionDB
from watchkeeper.retention import Condition
from watchkeeper.retention._holds import add_hold
from watchkeeper.retention._model import Claim
from watchkeeper.retention.ledger._ledger import Ledger


@pytest.fixture
def db(any_db: RetentionDB) -> RetentionDB:
    """The database, on each supported server."""
    return any_db


async def set_for(db: RetentionDB, server: PostgresServer, role: str, **settings: str) -> None:
    """Change the settings of a role's sessions in this database."""
    for name, value in settings.items():
        server.execute(
            sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} TO {}").format(
                sql.Identifier(role), sql.Identifier(db.urls.name), sql.Identifier(name), sql.Literal(value)
            )
        )
    await db.database.close()
    await db.database.open()
    db.close()
    db.reconnect()


async def test_hold_is_seen_at_any_isolation_level(
    db: RetentionDB, any_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot from before the wait for the run's lock would not have it."""
    await set_for(db, any_postgres, "keeper", default_transaction_isolation="repeatable read")
    db.make_table(old=5)
    locked: list[int] = []
    plain = Ledger.lock

    async def lock(ledger: Ledger, conn: psycopg.AsyncConnection, claim: Claim) -> None:
        locked.append(claim.id)
        if len(locked) < 2:  # which notes the segment; the second one deletes
            await plain(ledger, conn, claim)
            return
        operator = await psycopg.AsyncConnection.connect(db.urls.url)
        kept = [Condition(column="id", operator="is not null")]
        await add_hold(operator, "inbound_events", kept, reason="case 7", owner="legal", until=None)
        committing = asyncio.create_task(commit_soon(operator))
        await plain(ledger, conn, claim)
        await committing

    async def commit_soon(operator: psycopg.AsyncConnection) -> None:
        await asyncio.sleep(0.2)
        await operator.commit()
        await operator.close()

    monkeypatch.setattr(Ledger, "lock", lock)
    (result,) = await db.retention(ARCHIVED).run_now()
    assert (result.status, result.deleted, len(locked) >= 2) == ("completed", 0, True)
    assert db.count("inbound_events") == 5


async def test_hold_means_the_same_instant_to_every_role(
    db: RetentionDB, any_postgres: PostgresServer
) -> None:
    """Times without a zone are UTC when adding, sweeping and dropping partitions."""
    await set_for(db, any_postgres, "keeper", timezone="America/New_York", datestyle="ISO, DMY")
    db.sql("CREATE TABLE inbound_events (id text, received_at timestamptz) PARTITION BY RANGE (received_at)")
    db.sql(
        "CREATE TABLE p1 PARTITION OF inbound_events"
        " FOR VALUES FROM ('2026-01-02 00:00+00') TO ('2026-01-04 00:00+00')"
    )
    db.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON inbound_events TO keeper")
    db.sql(
        "INSERT INTO inbound_events VALUES ('evidence', '2026-01-02 23:00+00'), ('x', '2026-01-03 01:00+00')"
    )
    retention = db.retention(EVENTS)
    before = Condition.parse("received_at < '2026-01-03'")
    await retention.operator.hold("inbound_events", [before], reason="case 7", owner="legal")
    (plan,) = await retention.plan()
    assert (plan.held, plan.rows, plan.partitions) == (1, 1, ())
    (result,) = await retention.run_now()
    assert (result.status, result.deleted) == ("completed", 1)
    assert db.sql("SELECT id FROM inbound_events") == [("evidence",)]


async def test_partition_bound_means_the_same_to_every_role(
    db: RetentionDB, any_postgres: PostgresServer
) -> None:
    """Dublin's "IST" is read back as another zone's: a partition would seem to end too early."""
    await set_for(db, any_postgres, "keeper_owner", timezone="Europe/Dublin", datestyle="SQL, DMY")
    await set_for(db, any_postgres, "keeper", timezone="Europe/Dublin")
    ((age,),) = db.sql("SELECT extract(epoch FROM now() - '2026-06-30 22:30+00'::timestamptz)::float8")
    policy = dataclasses.replace(EVENTS, keep=timedelta(seconds=age))
    db.sql("CREATE TABLE inbound_events (id text, received_at timestamptz) PARTITION BY RANGE (received_at)")
    for name, start, stop in (("p0", "2026-05-01", "2026-06-01"), ("p1", "2026-06-01", "2026-07-01")):
        db.sql(
            f"CREATE TABLE {name} PARTITION OF inbound_events"
            f" FOR VALUES FROM ('{start} 00:00+01') TO ('{stop} 00:00+01')"
        )
    db.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON inbound_events TO keeper")
    db.sql(
        "INSERT INTO inbound_events VALUES ('old', '2026-06-10 00:00+00'), ('young', '2026-06-30 22:50+00')"
    )
    (result,) = await db.retention(policy).run_now()
    assert (result.status, result.deleted) == ("completed", 1)
    assert db.sql("SELECT id FROM inbound_events") == [("young",)]

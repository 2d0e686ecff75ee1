"""Old partitions are dropped as a whole: their rows are counted first, and no one waits for long."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.archive import ARCHIVED, archived
from support.pgbouncer import running_bouncer, through
from support.postgres import PostgresServer
from support.replicas import Replicas, kill_during_run
from support.retention import EVENTS, OnDeleted, RetentionDB, hold_rows, tick_beside
from watchkeeper.database import Database
from watchkeeper.database._owner import Owner
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention import Limits, Plan, RunResult
from watchkeeper.retention.run._partition_drop import PartitionDrop
from watchkeeper.retention.table._partitions import LOCK_TIMEOUT

KILLS = 12
# Without one, a table whose deletes are published takes no delete.
IDENTITIES = [
    f"ALTER TABLE {table} REPLICA IDENTITY FULL"
    for table in ("inbound_events", "p65", "p55", "p45", "p35", "p25", "p15")
]


def make_partitioned(db: RetentionDB, *, default: bool = True) -> None:
    """Make a table of ten-day partitions: three old ones, one with the horizon inside, two young ones."""
    db.sql("CREATE TABLE inbound_events (id text, received_at timestamptz) PARTITION BY RANGE (received_at)")
    for days in (65, 55, 45, 35, 25, 15):
        add_partition(db, f"p{days}", days)
    if default:
        db.sql("CREATE TABLE other PARTITION OF inbound_events DEFAULT")
    db.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON inbound_events TO keeper")


def add_partition(db: RetentionDB, name: str, days: int, tail: str = "") -> None:
    """Add the partition of ten days that starts this many days ago."""
    ((start, stop),) = db.sql(
        "SELECT date_trunc('day', now() - make_interval(days => %s)),"
        " date_trunc('day', now() - make_interval(days => %s))",
        days,
        days - 10,
    )
    db.sql(
        f"CREATE TABLE {name} PARTITION OF inbound_events FOR VALUES FROM ('{start}') TO ('{stop}') {tail}"
    )


def make_filled(db: RetentionDB) -> int:
    """Make the table with rows and return how many are old: 100, 50 and none in the old partitions."""
    make_partitioned(db)
    db.fill("inbound_events", 60, 100)
    db.fill("inbound_events", 50, 50)
    db.fill("inbound_events", 34, 20)
    db.fill("inbound_events", 27, 7)
    db.fill("inbound_events", 12, 5)
    db.fill("inbound_events", 300, 3)  # into the default partition
    db.sql("INSERT INTO inbound_events VALUES ('no age', NULL)")
    return 173


def partitions(db: RetentionDB) -> list[str]:
    """Return the names of the remaining partitions."""
    return [
        name
        for (name,) in db.sql(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'inbound_events'::regclass"
            " ORDER BY 1"
        )
    ]


def dropped(db: RetentionDB) -> list[list[str]]:
    """Return what each run dropped, from the ledger."""
    return [names for (names,) in db.sql("SELECT partitions FROM retention_runs ORDER BY id")]


async def run(db: RetentionDB, **options: Any) -> tuple[Plan, RunResult]:
    """Plan and run, and check that exactly the old rows were deleted."""
    retention = db.retention(EVENTS, **options)
    (plan,) = await retention.plan()
    (result,) = await retention.run_now()
    assert (result.status, result.deleted) == ("completed", plan.rows)
    assert db.sql("SELECT count(*) FROM inbound_events WHERE received_at < now() - interval '30 days'") == [
        (0,)
    ]
    assert [entry["deleted"] for entry in db.audit_payloads()] == [plan.rows]
    return plan, result


async def test_old_partitions_are_dropped_and_the_rest_is_swept(any_db: RetentionDB) -> None:
    """With a default partition, in ledger, audit log and metrics; the one with the horizon is swept."""
    db = any_db
    old = make_filled(db)
    batches: list[int] = []
    retention = db.retention(EVENTS)
    (plan,) = await retention.plan()
    assert (plan.rows, plan.strategy) == (old, "partitions")
    assert plan.partitions == ("public.p65", "public.p55", "public.p45")
    assert "3 of 7 partitions end before the horizon and are dropped" in plan.why
    assert partitions(db) == ["other", "p15", "p25", "p35", "p45", "p55", "p65"]
    (result,) = await retention.run_now(observer=OnDeleted(lambda _, rows: batches.append(rows)))
    assert (result.status, result.deleted, result.notes) == ("completed", old, ())
    assert batches[:2] == [100, 50]
    assert sum(batches) == old
    assert partitions(db) == ["other", "p15", "p25", "p35"]
    assert db.sql("SELECT to_regclass('p65')") == [(None,)]
    assert db.count("inbound_events") == 13
    assert dropped(db) == [["public.p65", "public.p55", "public.p45"]]
    (entry,) = db.audit_payloads()
    assert (entry["deleted"], entry["partitions"]) == (old, ["public.p65", "public.p55", "public.p45"])
    assert db.sample("retention_rows_deleted_total", table="inbound_events") == old


async def test_subpartitions_and_unusual_names_are_dropped(any_db: RetentionDB) -> None:
    """A partition is dropped with its subpartitions, whatever its name and schema."""
    db = any_db
    db.sql("CREATE SCHEMA crm")
    db.sql("GRANT USAGE ON SCHEMA crm TO keeper")
    make_partitioned(db)
    add_partition(db, "deep", 75, "PARTITION BY HASH (id)")
    for part in range(3):
        bounds = f"FOR VALUES WITH (MODULUS 3, REMAINDER {part})"
        db.sql(f'CREATE TABLE crm."Deep %s ""{part}" PARTITION OF deep {bounds}')
    add_partition(db, 'crm."Odd %s ""Part"', 85)
    db.fill("inbound_events", 70, 300)
    db.fill("inbound_events", 80, 40)
    plan, _ = await run(db)
    assert plan.partitions[:2] == ('crm."Odd %s ""Part"', "public.deep")
    assert partitions(db) == ["other", "p15", "p25", "p35"]
    assert db.sql("SELECT count(*) FROM pg_class WHERE relname LIKE 'Deep%%' OR relname LIKE 'Odd%%'") == [
        (0,)
    ]


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        pytest.param(
            ["CREATE TRIGGER notify AFTER DELETE ON inbound_events FOR EACH ROW EXECUTE FUNCTION notify()"],
            "p65, public.p55, public.p45, because the trigger notify would not fire for its rows",
            id="row trigger",
        ),
        pytest.param(
            ["CREATE TRIGGER notify BEFORE DELETE ON inbound_events EXECUTE FUNCTION notify()"],
            "the trigger notify would not fire",
            id="statement trigger",
        ),
        pytest.param(
            [
                f"CREATE TRIGGER notify BEFORE DELETE ON {part} FOR EACH ROW EXECUTE FUNCTION notify()"
                for part in ("p65", "p55", "p45")
            ],
            "the trigger notify would not fire",
            id="a partition's own trigger",
        ),
        pytest.param(
            [
                "ALTER TABLE inbound_events ADD PRIMARY KEY (id, received_at)",
                "CREATE TABLE notes (event text, at timestamptz)",
                "ALTER TABLE notes ADD FOREIGN KEY (event, at) REFERENCES inbound_events",
                "CREATE INDEX ON notes (event, at)",
                "GRANT SELECT ON notes TO keeper",
            ],
            "because notes refers to the table",
            id="foreign key",
        ),
        pytest.param(
            [*IDENTITIES, "CREATE PUBLICATION feed FOR TABLE inbound_events"],
            "the publication feed would not publish the deletes",
            id="publication",
        ),
        pytest.param(
            [
                *IDENTITIES,
                "CREATE PUBLICATION feed FOR TABLE inbound_events WITH (publish_via_partition_root = true)",
            ],
            "the publication feed would not publish the deletes",
            id="publication by the table",
        ),
        pytest.param(
            [f"CREATE VIEW look_{part} AS TABLE {part}" for part in ("p65", "p55", "p45")],
            "p65, because the view look_p65 reads it",
            id="view",
        ),
    ],
)
async def test_partition_whose_drop_would_differ_from_a_delete_is_swept(
    db: RetentionDB, statements: list[str], sentence: str
) -> None:
    """Plan, result and line say why."""
    make_partitioned(db, default=False)
    db.fill("inbound_events", 60, 100)
    db.fill("inbound_events", 34, 20)
    db.sql("CREATE FUNCTION notify() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN OLD; END$$")
    for statement in statements:
        db.sql(statement)
    plan, result = await run(db)
    assert plan.rows == 120
    assert plan.partitions == ()
    assert sentence in plan.why
    assert sentence in " ".join(result.notes)
    assert sentence in db.lines("retention")[-1]["msg"]
    assert len(partitions(db)) == 6
    assert dropped(db) == [[]]


async def test_unrelated_triggers_and_publications_do_not_matter(db: RetentionDB) -> None:
    """A disabled trigger, one on INSERT, and a publication of inserts only."""
    make_filled(db)
    db.sql("CREATE FUNCTION notify() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$")
    db.sql("CREATE TRIGGER one BEFORE INSERT ON inbound_events FOR EACH ROW EXECUTE FUNCTION notify()")
    db.sql("CREATE TRIGGER two BEFORE DELETE ON inbound_events FOR EACH ROW EXECUTE FUNCTION notify()")
    db.sql("ALTER TABLE inbound_events DISABLE TRIGGER two")
    db.sql("CREATE PUBLICATION feed FOR TABLE inbound_events WITH (publish = 'insert')")
    plan, _ = await run(db)
    assert len(plan.partitions) == 3


async def test_partition_with_a_held_row_is_swept(db: RetentionDB) -> None:
    """The held row stays, and the other partitions are dropped."""
    old = make_filled(db)
    retention = db.retention(EVENTS)
    await hold_rows(retention, "id = 60-7")
    (plan,) = await retention.plan()
    assert plan.partitions == ("public.p55", "public.p45")
    assert "public.p65, because a hold keeps rows of it" in plan.why
    (result,) = await retention.run_now()
    assert (result.status, result.deleted) == ("completed", old - 1)
    assert "public.p65, because a hold keeps rows of it" in " ".join(result.notes)
    assert db.sql("SELECT id FROM p65") == [("60-7",)]
    assert dropped(db) == [["public.p55", "public.p45"]]


async def test_partition_detached_during_the_run_is_kept(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It no longer belongs to the policy's table."""
    old = make_filled(db)
    count = PartitionDrop._count

    async def detach(self: PartitionDrop, *args: Any) -> int:
        if "p55" in partitions(db):
            db.sql("ALTER TABLE inbound_events DETACH PARTITION p55")
        return await count(self, *args)

    monkeypatch.setattr(PartitionDrop, "_count", detach)
    (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted, db.count("p55")) == ("completed", old - 50, 50)
    assert "public.p55, because it was changed during the drop" in " ".join(result.notes)
    assert dropped(db) == [["public.p65", "public.p45"]]


async def test_hold_added_while_a_partition_is_counted_applies(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds are read again under the lock; the partition is swept except for its held row."""
    old = make_filled(db)
    retention = db.retention(EVENTS)
    count = PartitionDrop._count
    held = False

    async def hold(self: PartitionDrop, *args: Any) -> int:
        nonlocal held
        rows = await count(self, *args)
        if not held:
            held = True
            await hold_rows(retention, "id = 60-7")
        return rows

    monkeypatch.setattr(PartitionDrop, "_count", hold)
    (result,) = await retention.run_now()
    assert (result.status, result.deleted) == ("completed", old - 1)
    assert "public.p65, because a hold was added or released during the drop" in " ".join(result.notes)
    assert db.sql("SELECT id FROM p65") == [("60-7",)]
    assert dropped(db) == [["public.p55", "public.p45"]]


async def test_partition_of_another_owner_is_swept(db: RetentionDB) -> None:
    """The owner's connection may not drop it; it drops the others."""
    make_filled(db)
    with psycopg.connect(db.urls.superuser_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE p55 OWNER TO postgres")
    plan, _ = await run(db)
    assert "public.p55, because it belongs to postgres, and DATABASE_OWNER_URL connects" in plan.why
    assert dropped(db) == [["public.p65", "public.p45"]]


@pytest.mark.parametrize(
    ("owner", "sentence"),
    [
        pytest.param(None, "it belongs to keeper_owner, and DATABASE_OWNER_URL connects", id="not given"),
        pytest.param("nobody", "its owner cannot read it: The database cannot be reached", id="unknown"),
    ],
)
async def test_without_the_owner_everything_is_swept(
    db: RetentionDB, owner: str | None, sentence: str
) -> None:
    """With no owner or a wrong one the rows are deleted one by one, and a note says why."""
    make_filled(db)
    url = db.urls.owner_url.replace("keeper_owner", owner) if owner else None
    async with Database(db.urls.url, owner_url=url) as database:
        plan, result = await run(db, database=database)
    assert sentence in plan.why
    assert sentence in " ".join(result.notes)
    assert dropped(db) == [[]]
    assert len(partitions(db)) == 7


async def test_service_that_owns_its_tables_drops_partitions(db: RetentionDB) -> None:
    """A single role is not recommended, but works."""
    make_filled(db)
    async with Database(db.urls.owner_url) as database:
        await run(db, database=database)
    assert len(dropped(db)[0]) == 3


async def test_share_limit_counts_rows_of_dropped_partitions(db: RetentionDB) -> None:
    """Deleting most of a table needs an operator override."""
    make_partitioned(db)
    db.fill("inbound_events", 60, 12_000)
    db.fill("inbound_events", 12, 3_000)
    retention = db.retention(EVENTS, limits=Limits(share=0.5))
    (result,) = await retention.run_now()
    assert (result.status, result.deleted, len(partitions(db))) == ("refused", 0, 7)
    (result,) = await retention.run_now(limits=Limits(share=0.9))
    assert (result.status, result.deleted) == ("completed", 12_000)
    assert dropped(db) == [[], ["public.p65", "public.p55", "public.p45"]]


@pytest.mark.parametrize(
    ("definition", "part"),
    [
        (
            "PARTITION BY RANGE (received_at, id)",
            "FOR VALUES FROM (MINVALUE, MINVALUE) TO ('2020-01-01', 'a')",
        ),
        (
            "PARTITION BY RANGE ((received_at AT TIME ZONE 'UTC'))",
            "FOR VALUES FROM (MINVALUE) TO ('2020-01-01')",
        ),
        ("PARTITION BY RANGE (received_at)", "FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"),
        ("PARTITION BY RANGE (received_at)", "DEFAULT"),
    ],
)
async def test_partitions_not_by_age_range_are_swept(any_db: RetentionDB, definition: str, part: str) -> None:
    """A partition by more than the age, or without an end, is not dropped."""
    db = any_db
    db.sql(f"CREATE TABLE inbound_events (id text, received_at timestamptz) {definition}")
    db.sql(f"CREATE TABLE part PARTITION OF inbound_events {part}")
    db.sql("GRANT SELECT, UPDATE, DELETE ON inbound_events TO keeper")
    db.sql("INSERT INTO inbound_events SELECT 'a', '2019-01-01' FROM generate_series(1, 30)")
    plan, _ = await run(db)
    assert (plan.rows, plan.partitions, partitions(db)) == (30, (), ["part"])


def begin_detach(db: RetentionDB, statement: str) -> None:
    """Leave a detach unfinished, as it is after a timeout."""
    with psycopg.connect(db.urls.owner_url) as reader:
        reader.execute("SELECT count(*) FROM inbound_events")
        db.sql("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            db.sql(f"{statement} CONCURRENTLY")


async def test_partition_being_detached_is_named(db: RetentionDB) -> None:
    """Its rows are invisible, so none is deleted; the note says how to finish the detach."""
    make_partitioned(db, default=False)
    db.fill("inbound_events", 60, 100)
    db.fill("inbound_events", 50, 50)
    begin_detach(db, "ALTER TABLE inbound_events DETACH PARTITION p65")
    plan, result = await run(db)
    assert (plan.rows, plan.partitions) == (50, ("public.p55", "public.p45"))
    sentence = "ALTER TABLE inbound_events DETACH PARTITION public.p65 FINALIZE"
    assert sentence in plan.why
    assert sentence in " ".join(result.notes)
    db.sql(sentence)
    assert db.count("p65") == 100


async def test_subpartition_being_detached_is_not_dropped(any_db: RetentionDB) -> None:
    """It keeps its rows, which are invisible; the rest of the partition is swept."""
    db = any_db
    make_partitioned(db, default=False)
    add_partition(db, "deep", 75, "PARTITION BY LIST (id)")
    db.sql("CREATE TABLE gone PARTITION OF deep FOR VALUES IN ('a')")
    db.sql("CREATE TABLE \"L'eft\" PARTITION OF deep FOR VALUES IN ('b')")
    db.sql("INSERT INTO inbound_events SELECT i, now() - interval '70 days' FROM unnest('{a,b}'::text[]) i")
    begin_detach(db, 'ALTER TABLE deep DETACH PARTITION "L\'eft"')
    plan, result = await run(db)
    assert (plan.rows, len(plan.partitions)) == (1, 3)
    sentence = 'ALTER TABLE deep DETACH PARTITION public."L\'eft" FINALIZE'
    assert sentence in plan.why
    assert sentence in " ".join(result.notes)
    db.sql(sentence)
    assert db.sql('SELECT id FROM "L\'eft"') == [("b",)]


@contextmanager
def busy_reader(db: RetentionDB) -> Iterator[None]:
    """Hold a query's lock on the whole table."""
    with psycopg.connect(db.urls.url) as reader:
        reader.execute("SELECT count(*) FROM inbound_events")
        yield


async def test_partitions_are_swept_beside_a_long_query(db: RetentionDB) -> None:
    """After a few short waits for the lock, the rows are deleted one by one."""
    db.tune(retry_waits=(timedelta(milliseconds=10),) * 2)
    old = make_filled(db)
    began = time.monotonic()
    with busy_reader(db):
        (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("completed", old)
    # Three tries for the first, one for each of the others.
    assert time.monotonic() - began > 5 * LOCK_TIMEOUT.total_seconds()
    assert "public.p65, public.p55, public.p45, because other transactions have it locked" in " ".join(
        result.notes
    )
    assert (dropped(db), len(partitions(db))) == ([[]], 7)


async def test_drop_is_retried_after_a_short_query(db: RetentionDB) -> None:
    """With growing pauses."""
    old = make_filled(db)

    def read() -> None:
        with busy_reader(db):
            time.sleep(0.5)

    reading = asyncio.create_task(asyncio.to_thread(read))
    await asyncio.sleep(0.1)
    (result,) = await db.retention(EVENTS).run_now()
    await reading
    assert (result.status, result.deleted, result.notes) == ("completed", old, ())
    assert len(dropped(db)[0]) == 3


def make_slow(db: RetentionDB) -> None:
    """Add an old partition whose count takes some seconds, a block at a time."""
    db.tune(partition_first_blocks=1, partition_largest_blocks=1)
    make_partitioned(db)
    db.fill("inbound_events", 60, 300_000)


def wait_until_counted(db: RetentionDB) -> int:
    """Wait until a partition is being counted, and return the process that counts."""
    query = "SELECT pid FROM pg_locks WHERE relation = 'p65'::regclass AND mode = 'ShareLock' AND granted"
    deadline = time.monotonic() + 60
    with psycopg.connect(db.urls.owner_url, autocommit=True) as conn:
        while not (found := conn.execute(query).fetchall()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return int(found[0][0])


async def test_writer_to_an_old_partition_waits_briefly(db: RetentionDB) -> None:
    """The count releases its lock, and the new row is counted with the rest."""
    make_slow(db)

    def write() -> float:
        wait_until_counted(db)
        with psycopg.connect(db.urls.url, autocommit=True) as conn:
            began = time.monotonic()
            conn.execute("INSERT INTO inbound_events VALUES ('late', now() - interval '60 days')")
            return time.monotonic() - began

    (result,), waited = await asyncio.gather(db.retention(EVENTS).run_now(), asyncio.to_thread(write))
    assert waited > 0.5 * LOCK_TIMEOUT.total_seconds()
    assert (result.status, result.deleted, result.notes) == ("completed", 300_001, ())
    assert [entry["deleted"] for entry in db.audit_payloads()] == [300_001]
    assert len(dropped(db)[0]) == 3


def count_for(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make the count of the first partition take this long."""
    count = PartitionDrop._count
    begun: list[Any] = []

    async def slow(self: PartitionDrop, conn: Any, leaf: Any) -> int:
        if not begun:
            begun.append(leaf)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                await asyncio.sleep(0.02)
                await self._let_others_in(conn)
        return await count(self, conn, leaf)

    monkeypatch.setattr(PartitionDrop, "_count", slow)


@pytest.mark.parametrize(
    ("word", "status"), [("cancel", "cancelled"), ("pause", "stopped"), ("interrupt", "stopped")]
)
async def test_count_can_be_interrupted(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch, word: str, status: str
) -> None:
    """The run ends long before the count would, and nothing is deleted."""
    make_filled(db)
    count_for(monkeypatch, 100)
    retention = db.retention(EVENTS)
    task = asyncio.create_task(retention.run_now())
    await asyncio.to_thread(wait_until_counted, db)
    if word == "interrupt":
        retention.interrupt()
    else:
        await getattr(retention.operator, word)("inbound_events", by="ann")
    (result,) = await asyncio.wait_for(task, 60)
    assert (result.status, result.deleted, dropped(db)) == (status, 0, [[]])


async def test_lease_is_renewed_in_the_pause_after_a_drop(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count of half a second is followed by a pause of two leases."""
    old = make_filled(db)
    count_for(monkeypatch, 0.5)
    lease = timedelta(seconds=0.6)
    retention = await db.overdue(EVENTS, lease=lease, limits=Limits(share=1.0, budget=0.3))
    other = db.retention(EVENTS, lease=lease)
    began = time.monotonic()
    (result,) = await tick_beside(db, retention, other)
    assert (result.status, result.deleted) == ("completed", old)
    assert time.monotonic() - began > 0.5 + 1.1


async def test_waiting_before_a_drop_does_not_count_as_work(db: RetentionDB) -> None:
    """A disk that was nearly full for a second does not make the run pause for a minute."""
    old = make_filled(db)
    began = time.monotonic()

    def free() -> tuple[int, int]:
        return (100 if time.monotonic() - began > 1 else 0, 100)

    limits = Limits(share=1.0, budget=1 / 60)
    (result,) = await db.retention(EVENTS, limits=limits, free_space=free).run_now()
    assert (result.status, result.deleted) == ("completed", old)
    assert 1 < time.monotonic() - began < 50


async def test_run_does_not_search_held_rows_before_the_count(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search may read whole partitions in an open transaction; only the plan does it."""

    async def look(*_: object) -> None:
        raise AssertionError("only a plan looks")

    old = make_filled(db)
    retention = db.retention(EVENTS)
    await hold_rows(retention, "id = 50-7")
    monkeypatch.setattr("watchkeeper.retention.table._partitions._keep_held", look)
    (result,) = await retention.run_now()
    assert (result.status, result.deleted) == ("completed", old - 1)
    assert "public.p55, because a hold keeps rows of it" in " ".join(result.notes)
    assert dropped(db) == [["public.p65", "public.p45"]]
    with pytest.raises(AssertionError, match="only a plan"):
        await retention.plan()


def slow_down_drops(db: RetentionDB, seconds: float) -> None:
    """Make each DROP take this long once it has its locks, and count even those rolled back."""
    with psycopg.connect(db.urls.superuser_url, autocommit=True) as conn:
        conn.execute("CREATE SEQUENCE drops")
        conn.execute("GRANT USAGE ON SEQUENCE drops TO PUBLIC")
        body = f"BEGIN PERFORM nextval('public.drops'), pg_sleep({seconds}); END"
        conn.execute(f"CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $${body}$$".encode())
        conn.execute("CREATE EVENT TRIGGER slow ON sql_drop EXECUTE FUNCTION slow()")


async def test_drop_may_take_longer_than_the_lock_timeout(db: RetentionDB) -> None:
    """The lock timeout bounds how long others wait, not the work itself."""
    old = make_filled(db)
    slow_down_drops(db, 3 * LOCK_TIMEOUT.total_seconds())
    (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted, result.notes) == ("completed", old, ())
    assert len(dropped(db)[0]) == 3


async def test_slow_drop_is_tried_once_and_reported_as_slow(db: RetentionDB) -> None:
    """One of a partition with many tables has more time; a retry would take as long."""
    db.tune(drop_timeout=timedelta(seconds=0.05), drop_timeout_per_table=timedelta(seconds=0.05))
    old = make_filled(db)
    add_partition(db, "deep", 75, "PARTITION BY HASH (id)")
    for part in range(20):
        db.sql(f"CREATE TABLE deep{part} PARTITION OF deep FOR VALUES WITH (MODULUS 20, REMAINDER {part})")
    db.fill("inbound_events", 70, 40)
    slow_down_drops(db, 0.4)
    (result,) = await db.retention(EVENTS).run_now()
    assert (result.status, result.deleted, dropped(db)) == ("completed", old + 40, [["public.deep"]])
    why = "because it takes too long (canceling statement due to statement timeout)."
    assert f"public.p65, public.p55, public.p45, {why}" in " ".join(result.notes)
    with psycopg.connect(db.urls.superuser_url) as conn:
        assert conn.execute("SELECT last_value FROM drops").fetchall() == [(4,)]


async def test_owner_that_cannot_reconnect_is_waited_for_once(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one partition waits for it, and all are swept."""
    db.tune(retry_waits=(timedelta(milliseconds=10),) * 2)
    old = make_filled(db)
    count, tried = PartitionDrop._count, []
    drop = PartitionDrop._drop

    async def note(self: PartitionDrop, target: Any, partition: Any) -> Any:
        tried.append(partition.name)
        return await drop(self, target, partition)

    async def shut_out(self: PartitionDrop, conn: Any, leaf: Any) -> int:
        superuser.execute("ALTER ROLE keeper_owner CONNECTION LIMIT 0")
        superuser.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
        return await count(self, conn, leaf)

    monkeypatch.setattr(PartitionDrop, "_drop", note)
    monkeypatch.setattr(PartitionDrop, "_count", shut_out)
    with psycopg.connect(db.urls.superuser_url, autocommit=True) as superuser:
        try:
            (result,) = await db.retention(EVENTS).run_now()
        finally:
            superuser.execute("ALTER ROLE keeper_owner CONNECTION LIMIT -1")
    assert (result.status, result.deleted, dropped(db)) == ("completed", old, [[]])
    (why,) = result.notes
    assert "public.p65, public.p55, public.p45, because its owner cannot drop it" in why
    assert "too many connections for role" in why
    assert tried == ["public.p65"] * 3


@pytest.mark.parametrize("back", [True, False])
async def test_drop_with_an_unacknowledged_commit_is_counted_once(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch, *, back: bool
) -> None:
    """The ledger tells whether it was committed, whether or not the owner reconnects."""
    db.tune(retry_waits=(timedelta(milliseconds=10),) * 2)
    old = make_filled(db)
    transaction, ended = Owner.transaction, 0

    @asynccontextmanager
    async def unanswered(self: Owner) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        nonlocal ended
        if ended >= 2 and not back:
            raise DatabaseUnavailableError("The database cannot be reached.")
        async with transaction(self) as conn:
            yield conn
        ended += 1
        if ended == 2:  # after the look at all
            raise DatabaseUnavailableError("The connection to the database was lost.")

    monkeypatch.setattr(Owner, "transaction", unanswered)
    counted: list[int] = []
    (result,) = await db.retention(EVENTS).run_now(observer=OnDeleted(lambda _, rows: counted.append(rows)))
    assert (result.status, result.deleted, sum(counted)) == ("completed", old, old)
    assert db.sample("retention_rows_deleted_total", table="inbound_events") == old
    assert [entry["deleted"] for entry in db.audit_payloads()] == [old]
    assert counted[0] == 100
    assert dropped(db) == [["public.p65", "public.p55", "public.p45"] if back else ["public.p65"]]
    assert [note.partition(", because")[0] for note in result.notes] == (
        [] if back else ["Not dropped: public.p55, public.p45"]
    )


async def test_connection_lost_during_a_count_is_replaced(db: RetentionDB) -> None:
    """The transaction is rolled back, and the next one drops the partition."""
    make_slow(db)

    def kill() -> None:
        counting = wait_until_counted(db)
        with psycopg.connect(db.urls.superuser_url) as conn:
            assert conn.execute("SELECT pg_terminate_backend(%s, 5000)", [counting]).fetchall() == [(True,)]

    (result,), _ = await asyncio.gather(db.retention(EVENTS).run_now(), asyncio.to_thread(kill))
    assert (result.status, result.deleted, result.notes) == ("completed", 300_000, ())
    assert [entry["deleted"] for entry in db.audit_payloads()] == [300_000]


async def test_partitions_are_dropped_behind_pgbouncer(db: RetentionDB, postgres: PostgresServer) -> None:
    """Both roles in transaction mode; no timeout setting stays on a connection."""
    make_filled(db)
    with running_bouncer(postgres) as bouncer:
        urls = through(bouncer, db.urls)
        async with Database(urls.url, owner_url=urls.owner_url, prepared_statements=False) as database:
            await run(db, database=database)
            async with database.owner() as owner, owner.transaction() as conn:
                for setting, plain in (("lock_timeout", "0"), ("statement_timeout", "0")):
                    assert await (await conn.execute(f"SHOW {setting}".encode())).fetchall() == [(plain,)]
    assert len(dropped(db)[0]) == 3


async def test_pain_9_others_go_on_while_partitions_are_dropped(db: RetentionDB) -> None:
    """pg_partman#834, pg_partman#796: dropping partitions blocks a service, or deadlocks with it."""
    make_partitioned(db)
    for days in range(75, 400, 10):
        add_partition(db, f"p{days}", days)
        db.fill("inbound_events", days - 5, 2000)
    db.fill("inbound_events", 12, 500)
    stop = threading.Event()
    done = dict.fromkeys(("insert", "read", "update"), 0)

    def work(name: str, statement: str) -> None:
        with psycopg.connect(db.urls.url, autocommit=True) as conn:
            while not stop.is_set():
                conn.execute(statement.encode())
                done[name] += 1

    threads = [
        threading.Thread(target=work, args=args)
        for args in (
            ("insert", "INSERT INTO inbound_events VALUES ('x', now())"),
            ("read", "SELECT count(*) FROM inbound_events WHERE received_at > now() - interval '20 days'"),
            ("update", "UPDATE inbound_events SET id = id WHERE id = 'no such'"),
        )
    ]
    for thread in threads:
        thread.start()
    (result,) = await db.retention(EVENTS).run_now()
    stop.set()
    for thread in threads:
        thread.join()
    assert (result.status, result.deleted, result.notes) == ("completed", 66_000, ())
    assert len(dropped(db)[0]) > 30
    assert min(done.values()) > 10


async def test_audited_drops_equal_dropped_partitions_after_random_kills(
    db: RetentionDB, tmp_path: Path
) -> None:
    """After kill -9 each partition is there with its rows, or dropped with its count."""
    make_partitioned(db)
    retention = await db.overdue(EVENTS)
    replicas = Replicas(db, tmp_path / "replicas", "--owner", db.urls.owner_url)
    rows, interrupted, chance = 0, 0, random.Random(4)
    try:
        for kill in range(KILLS):
            for part in range(6):
                days = 75 + 10 * (6 * kill + part)
                add_partition(db, f"p{days}", days)
                db.fill("inbound_events", days - 5, 1000)
                rows += 1000
            db.schedule.time += timedelta(milliseconds=1)
            interrupted += kill_during_run(db, replicas, chance.uniform(0.02, 0.2))
            left = {name for name in partitions(db) if name[1:].isdigit() and int(name[1:]) >= 75}
            gone = [name for names in dropped(db) for name in names]
            assert len(gone) == len(set(gone))
            assert left.isdisjoint(name.removeprefix("public.") for name in gone)
            assert db.count("inbound_events") == 1000 * len(left)
            assert db.sql("SELECT sum(rows_deleted) FROM retention_runs") == [(rows - 1000 * len(left),)]
            assert db.sql("SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == [(0,)]
            db.sql("UPDATE retention_runs SET lease_until = now() - interval '1 s' WHERE state = 'running'")
            if kill % 3:
                await retention.tick()
    finally:
        replicas.close()
    db.schedule.time += timedelta(milliseconds=1)
    await retention.tick()
    assert interrupted > KILLS / 3  # otherwise they were killed before or after, and this shows nothing
    assert db.count("inbound_events") == 0
    assert sum(entry["deleted"] for entry in db.audit_payloads()) == rows
    audited = [name for entry in db.audit_payloads() for name in entry.get("partitions", [])]
    assert sorted(audited) == sorted(name for names in dropped(db) for name in names)
    assert db.count("retention_runs WHERE state = 'running' OR audit_id IS NULL") == 0


async def test_policy_with_archive_drops_no_partition(db: RetentionDB) -> None:
    """Its rows are archived first, one by one, and the plan says so."""
    old = make_filled(db)
    retention = db.retention(ARCHIVED)
    (planned,) = await retention.plan()
    assert planned.partitions == ()
    assert "its rows have to be archived first" in planned.why
    (result,) = await retention.run_now()
    assert (result.status, planned.rows, result.deleted, len(archived(db))) == ("completed", old, old, old)
    assert db.count("inbound_events") == 13

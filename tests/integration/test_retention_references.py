"""Foreign keys that refuse a delete: referenced rows stay, the others are deleted, and children go first."""

import asyncio
import re
from contextlib import suppress
from datetime import timedelta

import psycopg
import pytest

from support.retention import BOTH_SCANS, OnDeleted, RetentionDB, until
from watchkeeper.retention import Policy
from watchkeeper.retention._queries import QUERIES
from watchkeeper.retention.table._target import find_target


def on(table: str, schema: str | None = None, *, archive: bool = False) -> Policy:
    """Return a policy of a month."""
    return Policy(table=table, age_column="at", keep=timedelta(days=30), schema=schema, archive=archive)


def make_family(db: RetentionDB, *, key: str = "", old_kids: int = 0) -> None:
    """Make 500 old parents, 11 young kids of some of them, and old kids of others."""
    db.sql("CREATE TABLE parents (id int PRIMARY KEY, at timestamptz)")
    db.sql("CREATE INDEX ON parents (at)")
    db.sql("CREATE TABLE kids (id int PRIMARY KEY, parent int, at timestamptz)")
    db.sql(f"ALTER TABLE kids ADD FOREIGN KEY (parent) REFERENCES parents {key}")
    db.sql("CREATE INDEX ON kids (parent)")
    db.sql("GRANT SELECT, UPDATE, DELETE ON parents, kids TO keeper")
    db.sql("INSERT INTO parents SELECT g, now() - interval '40 days' FROM generate_series(1, 500) g")
    db.sql("INSERT INTO kids SELECT g, g * 7, now() FROM generate_series(1, 11) g")
    db.sql("INSERT INTO kids VALUES (0, NULL, now())")
    db.sql(
        "INSERT INTO kids SELECT 1000 + g, 100 + g, now() - interval '40 days' FROM generate_series(1, %s) g",
        old_kids,
    )


@BOTH_SCANS
@pytest.mark.parametrize("key", ["", "ON DELETE RESTRICT", "DEFERRABLE INITIALLY DEFERRED"])
@pytest.mark.parametrize("archive", [False, True], ids=["deleted", "archived"])
async def test_referenced_rows_stay_and_the_others_are_deleted(
    any_db: RetentionDB, key: str, *, indexed: bool, archive: bool
) -> None:
    """Eleven of 500 are referenced: the plan says so, and the run deletes 489 by either scan."""
    if indexed:
        any_db.force_index_scans()
    make_family(any_db, key=key)
    retention = any_db.retention(on("parents", archive=archive))
    (plan,) = await retention.plan()
    assert (plan.rows, plan.referenced, plan.strategy) == (489, 11, "index scan" if indexed else "block scan")
    (result,) = await retention.run_now()
    assert (result.status, result.deleted, result.error) == ("completed", 489, None)
    assert any_db.sql("SELECT array_agg(id ORDER BY id) FROM parents") == [
        ([7 * number for number in range(1, 12)],)
    ]
    (plan,) = await retention.plan()
    assert (plan.rows, plan.referenced) == (0, 11)
    await retention.refresh_metrics()
    assert any_db.sample("retention_backlog_rows", table="parents") == 0


@BOTH_SCANS
async def test_children_are_pruned_before_their_parents(any_db: RetentionDB, *, indexed: bool) -> None:
    """Whatever the order of the policies, in one run and in one tick."""
    if indexed:
        any_db.force_index_scans()
    make_family(any_db, old_kids=300)
    policies = (on("parents"), on("kids"))
    results = await any_db.retention(*policies).run_now()
    assert [(result.table, result.status, result.deleted) for result in results] == [
        ("kids", "completed", 300),
        ("parents", "completed", 489),
    ]
    any_db.sql("INSERT INTO parents VALUES (1000, '2000-01-01')")
    any_db.sql("INSERT INTO kids VALUES (2000, 1000, '2000-01-01')")
    retention = await any_db.overdue(*policies)
    assert [(result.table, result.deleted) for result in await retention.tick()] == [
        ("kids", 1),
        ("parents", 1),
    ]


async def test_tables_that_reference_each_other_keep_their_order(db: RetentionDB) -> None:
    """What references the circle comes before it."""
    for table in ("a", "b", "c"):
        db.sql(f"CREATE TABLE {table} (id int PRIMARY KEY, other int, at timestamptz)")
        db.sql(f"CREATE INDEX ON {table} (other)")
        db.sql(f"GRANT SELECT, UPDATE, DELETE ON {table} TO keeper")
    for table, other in (("a", "b"), ("b", "a"), ("c", "a")):
        db.sql(f"ALTER TABLE {table} ADD FOREIGN KEY (other) REFERENCES {other}")
    results = await db.retention(on("b"), on("a"), on("c")).run_now()
    assert [(result.table, result.status) for result in results] == [
        ("c", "completed"),
        ("b", "completed"),
        ("a", "completed"),
    ]


async def test_composite_keys_with_unusual_names_are_compared_in_key_order(any_db: RetentionDB) -> None:
    """Also in another schema."""
    db = any_db
    parents, kids = '"Pä %s\'; -- {x}"', '"K""ids %(y)s {0}"'
    db.sql("CREATE SCHEMA crm")
    db.sql('CREATE SCHEMA "S %s"')
    db.sql('GRANT USAGE ON SCHEMA crm, "S %s" TO keeper')
    key = '"A %s", "b{0}"'
    db.sql(f'CREATE TABLE crm.{parents} ("A %s" text, "b{{0}}" int, at timestamptz, PRIMARY KEY ({key}))')
    refer = f'FOREIGN KEY (c, "t") REFERENCES crm.{parents}'
    db.sql(f'CREATE TABLE "S %s".{kids} ("t" bigint, c varchar, {refer})')
    db.sql(f'CREATE INDEX ON "S %s".{kids} ("t", c)')
    db.sql(f'GRANT SELECT, UPDATE, DELETE ON crm.{parents}, "S %s".{kids} TO keeper')
    pairs = "SELECT a, b, '2000-01-01' FROM generate_series(1, 20) a, generate_series(1, 20) b"
    db.sql(f"INSERT INTO crm.{parents} {pairs}")
    db.sql(f"INSERT INTO \"S %s\".{kids} VALUES (3, '4'), (NULL, '5'), (6, NULL), (3, '4')")  # noqa: S608 - the same
    (result,) = await db.retention(on("Pä %s'; -- {x}", "crm")).run_now()
    assert (result.status, result.deleted, result.error) == ("completed", 399, None)
    assert db.sql(f"SELECT * FROM crm.{parents}")[0][:2] == ("4", 3)  # noqa: S608 - the same


async def test_keys_compare_with_their_own_operators_and_collations(any_db: RetentionDB) -> None:
    """Here with a case-insensitive collation, and with two different ones."""
    db = any_db
    pairs = [('"C"', '"POSIX"')]
    with suppress(psycopg.errors.FeatureNotSupported):  # by a build without ICU
        db.sql("CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        pairs.append(("loose", "loose"))
        if db.sql("SELECT current_setting('server_version_num')::int < 180000")[0][0]:
            pairs.append(("loose", '"C"'))  # PostgreSQL 18 refuses such a key
    for number, (mine, theirs) in enumerate(pairs):
        db.sql(f"CREATE TABLE p{number} (id text COLLATE {mine} PRIMARY KEY, at timestamptz)")
        db.sql(f"CREATE TABLE k{number} (id text COLLATE {theirs} REFERENCES p{number})")
        db.sql(f"CREATE INDEX ON k{number} (id)")
        db.sql(f"GRANT SELECT, UPDATE, DELETE ON p{number}, k{number} TO keeper")
        db.sql(f"INSERT INTO p{number} VALUES ('Ann', '2000-01-01'), ('ben', '2000-01-01')")  # noqa: S608 - our names
        db.sql(f"INSERT INTO k{number} VALUES (%s)", "ANN" if mine == "loose" else "Ann")  # noqa: S608 - the same
        (result,) = await db.retention(on(f"p{number}")).run_now()
        assert (result.status, result.deleted, result.error) == ("completed", 1, None)
        assert db.count(f"p{number} WHERE id = 'Ann'") == 1


def make_tree(db: RetentionDB) -> None:
    """Make a self-referencing table."""
    db.sql("CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree, at timestamptz)")
    db.sql("CREATE INDEX ON tree (parent)")
    db.sql("CREATE INDEX ON tree (at)")
    db.sql("GRANT SELECT, UPDATE, DELETE ON tree TO keeper")


@BOTH_SCANS
@pytest.mark.parametrize("archive", [False, True], ids=["deleted", "archived"])
async def test_tree_is_deleted_from_its_leaves(any_db: RetentionDB, *, indexed: bool, archive: bool) -> None:
    """All of an old tree of thirty levels in one run; ancestors of a young row stay."""
    if indexed:
        any_db.force_index_scans()
    make_tree(any_db)
    any_db.sql(
        "INSERT INTO tree SELECT g, nullif(g - 10, 0), now() - make_interval(days => 400 - g)"
        " FROM generate_series(10, 300, 10) g"
    )
    any_db.sql(
        "INSERT INTO tree SELECT g, (g / 10) * 10, '2020-01-01' FROM generate_series(1, 300) g"
        " WHERE g % 10 > 0 AND g > 10"
    )
    any_db.sql(
        "INSERT INTO tree VALUES (1001, NULL, '2000-01-01'), (1002, 1001, '2000-01-01'),"
        " (1003, 1002, now()), (1004, 1004, '2000-01-01')"
    )
    retention = any_db.retention(on("tree", archive=archive))
    (result,) = await retention.run_now()
    assert (result.status, result.error, result.notes) == ("completed", None, ())
    assert any_db.sql("SELECT array_agg(id ORDER BY id) FROM tree") == [([1001, 1002, 1003],)]


@BOTH_SCANS
async def test_deep_tree_is_deleted_over_several_runs(db: RetentionDB, *, indexed: bool) -> None:
    """A run does so many levels and says so; rows in a circle stay."""
    if indexed:
        db.force_index_scans()
    db.tune(max_reference_passes=5)
    make_tree(db)
    db.sql("INSERT INTO tree SELECT g, nullif(g - 1, 0), '2000-01-01' FROM generate_series(1, 30) g")
    db.sql("INSERT INTO tree VALUES (101, NULL, '2000-01-01'), (102, 101, '2000-01-01')")
    db.sql("UPDATE tree SET parent = 102 WHERE id = 101")
    retention = db.retention(on("tree"))
    (result,) = await retention.run_now()
    assert (result.status, 5 <= result.deleted < 30) == ("completed", True)
    assert "Rows of tree reference each other over more than 5 levels" in result.notes[0]
    for _ in range(5):
        (result,) = await retention.run_now()
    assert (result.status, result.deleted, result.notes) == ("completed", 0, ())
    assert db.sql("SELECT array_agg(id ORDER BY id) FROM tree") == [([101, 102],)]


@pytest.mark.parametrize("key", ["", "ON DELETE RESTRICT", "DEFERRABLE INITIALLY DEFERRED"])
@pytest.mark.parametrize("archive", [False, True], ids=["deleted", "archived"])
async def test_child_inserted_during_a_delete_keeps_its_parent(
    any_db: RetentionDB, key: str, *, archive: bool
) -> None:
    """The DELETE has already chosen the row; the retry lets it stay."""
    any_db.tune(row_lock_timeout=timedelta(seconds=10), lock_timeout=timedelta(seconds=10))
    make_family(any_db, key=key)
    retention = any_db.retention(on("parents", archive=archive))
    with psycopg.connect(any_db.urls.owner_url) as other:
        other.execute("INSERT INTO kids VALUES (99, 300, now())")
        other.execute("SET CONSTRAINTS ALL IMMEDIATE")
        running = asyncio.create_task(retention.run_now())
        await until(lambda: any_db.count("pg_locks WHERE NOT granted"))
        other.commit()
    (result,) = await running
    assert (result.status, result.deleted, result.error) == ("completed", 488, None)
    assert any_db.sql("SELECT count(*) FROM parents WHERE id = 300") == [(1,)]
    assert any_db.sql("SELECT deleted FROM retention_archives WHERE deleted IS NULL") == [(None,)] * archive
    assert [entry["deleted"] for entry in any_db.audit_payloads()] == [488]


@pytest.mark.parametrize("policy", ["parents", "p_old"])
async def test_keys_to_partitions_and_to_the_whole_table_count(any_db: RetentionDB, policy: str) -> None:
    """One to the whole counts for a partition's policy too, one to a partition for its rows only."""
    db = any_db
    db.sql("CREATE TABLE parents (id int, at timestamptz, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)")
    db.sql("CREATE TABLE p_old (at timestamptz NOT NULL, id int NOT NULL)")
    db.sql("ALTER TABLE parents ATTACH PARTITION p_old FOR VALUES FROM ('2000-01-01') TO ('2001-01-01')")
    db.sql("CREATE TABLE p_rest PARTITION OF parents DEFAULT")
    db.sql("ALTER TABLE p_old ADD UNIQUE (id)")
    db.sql("CREATE TABLE kids (id int, at timestamptz, FOREIGN KEY (id, at) REFERENCES parents)")
    db.sql("CREATE INDEX ON kids (id, at)")
    db.sql("CREATE TABLE others (id int REFERENCES p_old (id)) PARTITION BY RANGE (id)")
    db.sql("CREATE TABLE other_few PARTITION OF others DEFAULT")
    db.sql("CREATE INDEX ON others (id)")
    db.sql("GRANT SELECT, UPDATE, DELETE ON parents, p_old, kids, others TO keeper")
    for at in ("2000-01-02", "2002-01-01"):
        db.sql("INSERT INTO parents SELECT g, %s FROM generate_series(1, 10) g", at)
    db.sql("INSERT INTO kids VALUES (1, '2000-01-02'), (2, '2002-01-01')")
    db.sql("INSERT INTO others VALUES (3)")
    (result,) = await db.retention(on(policy)).run_now()
    assert (result.status, result.error) == ("completed", None)
    assert db.sql("SELECT id FROM p_old ORDER BY id") == [(1,), (3,)]
    assert db.count("p_rest") == (1 if policy == "parents" else 10)


async def test_inherited_tables_are_checked_by_their_own_keys(db: RetentionDB) -> None:
    """Keys to a table do not concern its children, nor the other way round."""
    db.sql("CREATE TABLE base (id int PRIMARY KEY, at timestamptz)")
    db.sql("CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (base)")
    db.sql("CREATE TABLE kids (base int REFERENCES base, heir int REFERENCES heir)")
    db.sql("CREATE TABLE more () INHERITS (kids)")
    db.sql("CREATE INDEX ON kids (base)")
    db.sql("CREATE INDEX ON kids (heir)")
    db.sql("GRANT SELECT, UPDATE, DELETE ON base, heir, kids TO keeper")
    for table in ("base", "heir"):
        db.sql(f"INSERT INTO {table} SELECT g, '2000-01-01' FROM generate_series(1, 10) g")  # noqa: S608 - our names
    db.sql("INSERT INTO kids VALUES (1, 2)")
    db.sql("INSERT INTO more VALUES (5, 6)")
    (result,) = await db.retention(on("base")).run_now()
    assert (result.status, result.deleted, result.error) == ("completed", 18, None)
    assert db.sql("SELECT tableoid::regclass::text, id FROM base ORDER BY 1") == [("base", 1), ("heir", 2)]


async def test_unenforced_key_keeps_nothing(db: RetentionDB) -> None:
    """PostgreSQL 18 has such keys, and a delete ignores them."""
    make_family(db, key="NOT ENFORCED")
    db.sql("DROP INDEX kids_parent_idx")
    db.sql("REVOKE SELECT ON kids FROM keeper")
    (result,) = await db.retention(on("parents")).run_now()
    assert (result.status, result.deleted) == ("completed", 500)


async def test_key_created_during_a_run_fails_it(db: RetentionDB) -> None:
    """The run does not know the key; the next one does."""
    db.force_index_scans()
    db.tune(retry_waits=(timedelta(0),) * 2)
    db.limit_batches(rows=100)
    make_family(db)
    db.sql("ALTER TABLE kids DROP CONSTRAINT kids_parent_fkey")
    db.sql("UPDATE parents SET at = at + id * interval '1 us'")
    db.sql("UPDATE kids SET parent = 490 WHERE id = 1")
    db.sql("DELETE FROM kids WHERE id > 1")

    def refer(_table: str, _rows: int) -> None:
        db.sql("ALTER TABLE kids DROP CONSTRAINT IF EXISTS late")
        db.sql("ALTER TABLE kids ADD CONSTRAINT late FOREIGN KEY (parent) REFERENCES parents")

    (result,) = await db.retention(on("parents")).run_now(observer=OnDeleted(refer))
    assert (result.status, 0 < result.deleted < 499) == ("failed", True)
    assert isinstance(result.error, psycopg.errors.ForeignKeyViolation)
    (result,) = await db.retention(on("parents")).run_now()
    assert (result.status, db.count("parents")) == ("completed", 1)


async def test_index_scan_reads_only_its_range(db: RetentionDB) -> None:
    """Also with the generic plan that PostgreSQL takes after some sweeps."""
    make_family(db)
    async with db.database.transaction() as conn:
        target = await find_target(conn, on("parents"))
        statement = target.fill(QUERIES["delete_ages"]).as_string(conn)
    for number, name in enumerate(("horizon", "start", "stop", "last"), 1):
        statement = statement.replace(f"%({name})s", f"${number}")
    db.sql("SET plan_cache_mode = force_generic_plan")
    db.sql("SET enable_seqscan = off")
    db.sql(f"PREPARE sweep (timestamptz, text, text, boolean) AS {statement}")
    plan = "\n".join(
        line for (line,) in db.sql("EXPLAIN EXECUTE sweep (now(), '-infinity', 'infinity', true)")
    )
    (bounds,) = re.findall(r"Index Cond: (.* >= .*)", plan)
    assert "<= ($3)::timestamp with time zone" in bounds

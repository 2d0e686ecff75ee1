"""Archive before delete: every deleted row is in the archive first, and comes back exactly as it was."""

import asyncio
import contextlib
import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.archive import ARCHIVED, HookedArchive, archived, difference, file_of
from support.retention import BOTH_SCANS, RetentionDB
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.logs._logging import Logging
from watchkeeper.logs.output._sink import Sink
from watchkeeper.metrics import Registry
from watchkeeper.retention import FolderArchive, Location, Policy, Retention
from watchkeeper.retention._metrics import RetentionMetrics

EVERYTHING = """
CREATE TYPE mood AS ENUM ('glad', 'so so', 'it''s "bad"');
CREATE TYPE pair AS (left_one text, right_one numeric(6, 2));
CREATE DOMAIN settings AS jsonb CHECK (jsonb_typeof(VALUE) = 'object');
CREATE DOMAIN short AS varchar(5) NOT NULL;
CREATE TABLE everything (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at timestamptz,
    "Mixed ""Case"" 100%" text,
    line text, t text, r text, q text, l text,
    truth boolean, small smallint, amount numeric, money_in_cents numeric(12, 2), price money,
    single real, wide double precision,
    fixed char(6), letter "char", word name, brief varchar(5), limited short,
    raw bytea, bits bit(5), more_bits bit varying,
    day date, clock time, clock_zone timetz, moment timestamp, span interval, since timestamptz(3),
    verbatim json, tidy jsonb, configured settings, documents jsonb[],
    feeling mood, "both" pair, pairs pair[], matrix int[][], names text[],
    numbers int4range, several nummultirange, times tstzrange,
    address inet, net cidr, card macaddr, key uuid, words tsvector, wanted tsquery, page xml,
    dot point, area polygon, ring circle, place pg_lsn, kind regclass,
    dropped int,
    escape_percent numeric GENERATED ALWAYS AS (amount * 2) STORED
);
ALTER TABLE everything DROP dropped;
"""

HOSTILE = [
    "'plain'",
    "''",
    "NULL",
    "'NULL'",
    r"""E'tab\tnewline\nreturn\rquote\"back\\slash'""",
    "U&'\\2028\\2029\\0001\\007f\\feff'",
    "U&'\\+01F600 \\0301'",
]

VALUES = {
    "truth": ["true", "false"],
    "small": ["-32768"],
    "amount": ["'NaN'", "'Infinity'", "1e-300", "123456789012345678901234567890.10"],
    "money_in_cents": ["-0.10", "9999999999.99"],
    "price": ["'-92233720368547758.08'", "12.3"],
    "single": ["'NaN'", "'-Infinity'", "0.1", "1.1754944e-38"],
    "wide": ["'NaN'", "'-0'", "0.1::float8 + 0.2::float8", "5e-324", "1.7976931348623157e308"],
    "fixed": ["'ab'", "'ab    '", "''"],
    "letter": ["'x'", "''", "'\\377'"],
    "word": ["'a name'"],
    "brief": ["'äöüß€'"],
    "raw": [r"'\x'", r"'\x00ff5c27'"],
    "bits": ["B'10100'"],
    "more_bits": ["B''", "B'1'"],
    "day": ["'infinity'", "'0044-03-15 BC'", "'5874897-12-31'"],
    "clock": ["'24:00'", "'12:00:00.000001'"],
    "clock_zone": ["'12:00+05:45:30'"],
    "moment": ["'-infinity'", "'0044-03-15 12:00 BC'", "'294276-12-31 23:59:59.999999'"],
    "span": ["'-1 year 2 mons -3 days 04:05:06.000007'", "'0'", "'178000000 years'"],
    "since": ["'infinity'", "'1883-11-18 12:03:57.123+00'"],
    "verbatim": ["""'{"b":1, "a":  [1.10, "\\u0041"], "a": null}'""", "'null'", "'\"\\u0041\"'", "'  7 '"],
    "tidy": ["""'{"a": 1.10, "b": "\\"\\\\"}'""", "'null'", "'\"x\"'"],
    "configured": ["'{\"k\": [1, null]}'"],
    "documents": ["""ARRAY['{"a": 1}', 'null', NULL]::jsonb[]"""],
    "feeling": ["'it''s \"bad\"'"],
    '"both"': ["ROW(NULL, NULL)", "ROW('a,\"(b)\\', 12.30)", "NULL"],
    "pairs": ["ARRAY[ROW('{x}', 1)::pair, NULL]", "'{}'"],
    "matrix": ["'[2:3][-1:0]={{1,2},{3,NULL}}'"],
    "names": ["ARRAY['NULL', NULL, '', '{', E'\\\\', '\"', ' ']"],
    "numbers": ["'empty'", "'(,)'", "'[1,10)'"],
    "several": ["'{}'", "'{[1.10,2.20),(5,)}'"],
    "times": ["'[-infinity,infinity]'"],
    "address": ["'::ffff:1.2.3.4/128'", "'10.0.0.1/8'"],
    "net": ["'10.0.0.0/8'"],
    "card": ["'08:00:2b:01:02:03'"],
    "key": ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    "words": ["'it''s:1A \\\\x:2'"],
    "wanted": ["'a & !b <-> c'"],
    "page": ["'<a b=\"1\">&amp;</a>text'"],
    "dot": ["'(0.1,1e-300)'"],
    "area": ["'((0,0),(1,1),(0.1,0.2))'"],
    "ring": ["'<(0,0),0.1>'"],
    "place": ["'16/B374D848'"],
    "kind": ["'audit_log'", "0"],
}


async def test_restore_returns_a_row_of_every_type_unchanged(any_db: RetentionDB) -> None:
    """Restored rows equal the deleted ones to the last character."""
    db = any_db
    db.sql(EVERYTHING)
    db.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON everything TO keeper")
    for text in HOSTILE:
        db.sql(
            'INSERT INTO everything (received_at, "Mixed ""Case"" 100%%", line, t, r, q, l, limited)'  # noqa: S608 - the tests' own
            f" VALUES ('2020-01-01', {text}, {text}, {text}, {text}, {text}, {text}, '')".replace("%%", "%")
        )
    for column, values in VALUES.items():
        for value in values:
            with contextlib.suppress(psycopg.errors.FeatureNotSupported):  # XML, in a build without libxml
                db.sql(
                    f"INSERT INTO everything (received_at, limited, {column})"  # noqa: S608 - the same
                    f" VALUES ('-infinity', 'x', {value})"
                )
    db.sql("INSERT INTO everything (received_at, limited) VALUES (now(), 'young')")
    db.sql("CREATE TABLE before AS TABLE everything")
    policy = Policy(table="everything", age_column="received_at", keep=timedelta(days=30), archive=True)
    retention = db.retention(policy)
    (result,) = await retention.run_now()
    assert (result.status, result.error) == ("completed", None)
    assert db.count("everything") == 1
    assert len(archived(db)) == result.deleted == db.count("before") - 1
    restored = await retention.operator.restore(1, restored_by="ann")
    assert (restored.problems, restored.rows, restored.present) == ((), result.deleted, 0)
    assert difference(db, "everything", "before") == []


TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.none() | TEXTS,
            st.none() | st.binary(max_size=30),
            st.none() | st.decimals(-(10**30), 10**30, allow_nan=False),
            st.none() | st.floats(),
            st.none() | st.lists(st.none() | TEXTS, max_size=3),
        ),
        min_size=1,
        max_size=8,
    )
)
async def test_restore_returns_any_value(db: RetentionDB, rows: list[tuple[Any, ...]]) -> None:
    """Any text, bytes, numbers and arrays."""
    db.sql("DROP TABLE IF EXISTS anything, before")
    db.sql(
        "CREATE TABLE anything (received_at timestamptz DEFAULT '2020-01-01', a text, b bytea, c numeric,"
        " d float8, e text[])"
    )
    db.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON anything TO keeper")
    for row in rows:
        db.sql("INSERT INTO anything (a, b, c, d, e) VALUES (%s, %s, %s, %s, %s::text[])", *row)
    db.sql("CREATE TABLE before AS TABLE anything")
    policy = Policy(table="anything", age_column="received_at", keep=timedelta(days=30), archive=True)
    retention = db.retention(policy)
    (result,) = await retention.run_now()
    assert (result.error, result.deleted, db.count("anything")) == (None, len(rows), 0)
    restored = await retention.operator.restore(result.run or 0, restored_by="ann")
    assert (restored.problems, restored.rows) == ((), len(rows))
    assert difference(db, "anything", "before") == []


@BOTH_SCANS
async def test_rows_are_archived_before_they_are_deleted(db: RetentionDB, *, indexed: bool) -> None:
    """Each deleted row is in one segment, kept rows are in none, and the audit entry counts them."""
    db.force_index_scans()
    db.make_table(indexed=indexed, old=30_000)
    db.fill("inbound_events", 29, 100)
    ids = {row for (row,) in db.sql("SELECT id FROM inbound_events WHERE id LIKE '40-%'")}
    (result,) = await db.retention(ARCHIVED).run_now()
    assert (result.error, result.deleted, db.count("inbound_events")) == (None, 30_000, 100)
    rows = archived(db)
    assert len(rows) == 30_000
    assert {row["id"] for row in rows} == ids
    (entry,) = db.audit_payloads()
    ((place, files),) = db.sql("SELECT min(place), count(DISTINCT place) FROM retention_archives")
    assert entry["archived"] == {"rows": 30_000, "place": place, "files": files}


@BOTH_SCANS
async def test_row_updated_after_archiving_is_archived_again(db: RetentionDB, *, indexed: bool) -> None:
    """The first pass leaves it; a later pass archives its new values, and those are restored."""
    db.force_index_scans()
    db.make_table(indexed=indexed)
    db.sql("ALTER TABLE inbound_events ADD note text")
    db.fill("inbound_events", 40, 500)
    update = "UPDATE inbound_events SET note = 'changed' WHERE id LIKE '40-1%'"
    archive = HookedArchive(db.folder / "archive", lambda: db.sql(update))
    retention = db.retention(ARCHIVED, archive=archive)
    (result,) = await retention.run_now()
    assert (result.error, result.deleted, db.count("inbound_events")) == (None, 500, 0)
    rows = archived(db)
    assert len(rows) == len({row["id"] for row in rows}) == 500
    assert all((row["note"] == "changed") == row["id"].startswith("40-1") for row in rows)
    await retention.operator.restore(1, restored_by="ann")
    assert db.count("inbound_events WHERE (note = 'changed') IS TRUE = (id LIKE '40-1%')") == 500


async def test_row_that_became_young_after_archiving_stays(db: RetentionDB) -> None:
    """Eligibility is checked again when deleting, and a restore does not duplicate the row."""
    db.make_table(old=50)
    touch = "UPDATE inbound_events SET received_at = now() WHERE id = '40-5'"
    retention = db.retention(ARCHIVED, archive=HookedArchive(db.folder, lambda: db.sql(touch)))
    (result,) = await retention.run_now()
    assert (result.error, result.deleted) == (None, 49)
    assert db.sql("SELECT id FROM inbound_events") == [("40-5",)]
    restored = await retention.operator.restore(1, restored_by="ann")
    assert (restored.rows, restored.present, db.count("inbound_events")) == (49, 0, 50)


@BOTH_SCANS
async def test_hold_added_between_archive_and_delete_applies(db: RetentionDB, *, indexed: bool) -> None:
    """Held rows stay, and the ledger lists which of the archived rows were kept."""
    db.force_index_scans()
    db.make_table(indexed=indexed, old=100)
    hold = (
        "INSERT INTO retention_holds (table_name, conditions, reason, owner) VALUES ('inbound_events',"
        ' \'[{"column": "id", "operator": "in", "values": ["40-7", "40-8"]}]\', \'x\', \'y\')'
    )
    archive = HookedArchive(db.folder, lambda: db.sql(hold))
    (result,) = await db.retention(ARCHIVED, archive=archive).run_now()
    assert (result.error, result.deleted) == (None, 98)
    assert db.sql("SELECT id FROM inbound_events ORDER BY id") == [("40-7",), ("40-8",)]
    assert {"40-7", "40-8"}.isdisjoint(row["id"] for row in archived(db))
    ((segment,),) = db.sql(
        "SELECT (rows, deleted, cardinality(kept))::text FROM retention_archives ORDER BY id LIMIT 1"
    )
    assert segment == "(100,98,2)"


async def test_rows_moved_to_archived_places_are_not_deleted(db: RetentionDB) -> None:
    """VACUUM FULL moves rows: a row is not deleted because an archived one was at its ctid."""
    db.make_table(indexed=False, old=3000)
    db.sql("DELETE FROM inbound_events WHERE right(id, 1) = '1'")
    db.sql("CREATE TABLE before AS TABLE inbound_events")
    archive = HookedArchive(db.folder, lambda: db.sql("VACUUM FULL inbound_events"))
    retention = db.retention(ARCHIVED, archive=archive)
    (result,) = await retention.run_now()
    assert (result.error, result.deleted, db.count("inbound_events")) == (None, 2700, 0)
    assert len({row["id"] for row in archived(db)}) == len(archived(db)) == 2700
    assert db.sql("SELECT deleted FROM retention_archives ORDER BY id LIMIT 1") == [(0,)]
    await retention.operator.restore(1, restored_by="ann")
    assert difference(db, "inbound_events", "before") == []


async def test_row_inserted_at_an_archived_place_is_not_deleted(db: RetentionDB) -> None:
    """The xmin tells the rows apart: the new row is archived before it is deleted."""
    db.make_table(indexed=False, old=50)

    def replace() -> None:
        ((place,),) = db.sql("DELETE FROM inbound_events WHERE id = '40-5' RETURNING ctid::text")
        db.sql("VACUUM inbound_events")
        new = db.sql("INSERT INTO inbound_events VALUES ('new', '2020-01-01') RETURNING ctid::text")
        assert new == [(place,)]

    (result,) = await db.retention(ARCHIVED, archive=HookedArchive(db.folder, replace)).run_now()
    assert (result.error, result.deleted, db.count("inbound_events")) == (None, 50, 0)
    assert {row["id"] for row in archived(db)} == {f"40-{n}" for n in range(1, 51) if n != 5} | {"new"}


@BOTH_SCANS
async def test_locked_rows_are_archived_in_a_later_pass(db: RetentionDB, *, indexed: bool) -> None:
    """Small segments that start with locked rows do not make other rows wait."""
    db.force_index_scans()
    db.tune(segment_bytes=2000, pass_waits=(timedelta(0),) * 2)
    db.make_table(indexed=indexed, old=600)
    with psycopg.connect(db.urls.owner_url) as other:
        other.execute("SELECT FROM inbound_events ORDER BY received_at DESC LIMIT 90 FOR UPDATE")
        other.execute("SELECT FROM inbound_events ORDER BY received_at LIMIT 90 FOR UPDATE")
        (result,) = await db.retention(ARCHIVED).run_now()
        assert (result.status, result.deleted, db.count("inbound_events")) == ("failed", 420, 180)
        other.rollback()
    message = re.match(r"Up to (\d+) eligible rows of inbound_events are locked", str(result.error))
    assert message is not None
    assert 180 <= int(message[1]) <= 200  # those between two sweeps are counted twice
    (result,) = await db.retention(ARCHIVED).run_now()
    assert (result.error, result.deleted, db.count("inbound_events")) == (None, 180, 0)
    assert len({row["id"] for row in archived(db)}) == len(archived(db)) == 600


async def test_trigger_that_keeps_rows_is_reported_before_everything_is_archived(db: RetentionDB) -> None:
    """The run fails after three sweeps, with a sentence."""
    db.tune(segment_bytes=20_000)
    db.make_table(old=5000)
    db.on_delete("RETURN NULL", "BEFORE DELETE ON inbound_events FOR EACH ROW")
    (result,) = await db.retention(ARCHIVED).run_now()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("failed", 0, 5000)
    assert "a BEFORE DELETE trigger keeps them" in str(result.error)
    assert db.count("retention_archives") == 3


async def test_segments_are_bounded_by_bytes(db: RetentionDB) -> None:
    """Rows of 5 MB are archived a few at a time, which bounds the memory, and all come back."""
    db.make_table()
    db.sql("ALTER TABLE inbound_events ADD body text")
    db.fill("inbound_events", 40, 9)
    db.sql("UPDATE inbound_events SET body = repeat(md5(id), 160000)")
    db.sql("CREATE TABLE before AS TABLE inbound_events")
    retention = db.retention(ARCHIVED)
    (result,) = await retention.run_now()
    assert (result.error, result.deleted, db.count("inbound_events")) == (None, 9, 0)
    assert db.sql("SELECT max(rows), sum(rows) FROM retention_archives") == [(2, 9)]
    restored = await retention.operator.restore(1, restored_by="ann")
    assert (restored.problems, restored.rows) == ((), 9)
    assert difference(db, "inbound_events", "before") == []


@BOTH_SCANS
async def test_partitioned_table_is_archived(any_db: RetentionDB, *, indexed: bool) -> None:
    """Rows of two partitions have the same ctids and are not confused."""
    db = any_db
    db.force_index_scans()
    db.sql("CREATE TABLE inbound_events (id int, received_at timestamptz) PARTITION BY HASH (id)")
    for part in range(3):
        bounds = f"FOR VALUES WITH (MODULUS 3, REMAINDER {part})"
        db.sql(f"CREATE TABLE part_{part} PARTITION OF inbound_events {bounds}")
    if indexed:
        db.sql("CREATE INDEX ON inbound_events (received_at)")
    db.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON inbound_events TO keeper")
    db.sql(
        "INSERT INTO inbound_events SELECT g, now() - interval '40 days' * mod(g, 2)"
        " FROM generate_series(1, 3000) g"
    )
    db.sql("CREATE TABLE before AS TABLE inbound_events")
    retention = db.retention(ARCHIVED)
    (result,) = await retention.run_now()
    assert (result.error, result.deleted) == (None, 1500)
    assert sorted(int(row["id"]) for row in archived(db)) == list(range(1, 3000, 2))
    await retention.operator.restore(1, restored_by="ann")
    assert difference(db, "inbound_events", "before") == []


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "ALTER TABLE inbound_events ADD n serial, ADD CONSTRAINT once UNIQUE (n) DEFERRABLE",
            "could not be restored because of the deferrable key once",
        ),
        (
            "CREATE TABLE heir (more text) INHERITS (inbound_events)",
            "those of heir, which inherits from it, could not be restored",
        ),
    ],
)
async def test_archiving_refuses_a_table_that_could_not_be_restored(
    db: RetentionDB, statement: str, sentence: str
) -> None:
    """ON CONFLICT skips no row of a deferrable key, and child rows have columns of their own."""
    db.make_table()
    db.sql(statement)
    db.fill("inbound_events", 40, 5)
    retention = db.retention(ARCHIVED)
    (planned,) = await retention.plan()
    (result,) = await retention.run_now()
    assert (result.status, db.count("inbound_events")) == ("refused", 5)
    for message in (planned.problem, result.error):
        assert sentence in str(message)


async def test_archive_file_is_a_gzip_file_of_bounded_size(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments are gzip members that zcat reads; a full file is followed by a new one."""
    monkeypatch.setattr("watchkeeper.retention.archive._folder.LARGEST_FILE", 20_000)
    db.tune(segment_bytes=20_000)
    db.make_table(old=10_000)
    (result,) = await db.retention(ARCHIVED).run_now()
    assert (result.error, result.deleted) == (None, 10_000)
    files = sorted((db.folder / "archive/inbound_events").iterdir())
    assert files[0].name == "1-0001.jsonl.gz"
    assert len(files) > 2
    assert all(file.stat().st_size <= 20_000 and file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert (db.folder / "archive").stat().st_mode & 0o777 == 0o700
    zcat = await asyncio.create_subprocess_exec("zcat", *map(str, files), stdout=subprocess.PIPE)
    listed = (await zcat.communicate())[0].splitlines()
    assert zcat.returncode == 0
    assert len({json.loads(line)["id"] for line in listed}) == len(listed) == 10_000
    assert {file_of(place) for (place,) in db.sql("SELECT place FROM retention_archives")} == set(files)


async def test_policy_with_archive_needs_an_archive(db: RetentionDB) -> None:
    """Without an archive it would delete what it promised to keep."""
    with pytest.raises(ConfigurationError, match="inbound_events archives its rows: say where"):
        Retention(
            db.database,
            [ARCHIVED],
            schedule=db.schedule,
            metrics=RetentionMetrics(Registry(), [ARCHIVED]),
            logging=Logging(service="test", env="test", sink=Sink(2)),
        )


class HangingArchive(FolderArchive):
    """An archive whose disk does not answer."""

    async def write(self, table: str, run: int, data: bytes) -> Location:
        """Hang."""
        await asyncio.Event().wait()
        raise AssertionError(table, run, data)


async def test_hanging_archive_keeps_the_lease_until_the_run_is_cancelled(
    db: RetentionDB, tmp_path: Path
) -> None:
    """The lease is renewed, nothing is deleted, and cancel ends the run."""
    db.make_table(old=10)
    retention = db.retention(ARCHIVED, archive=HangingArchive(tmp_path / "hung"), lease=timedelta(seconds=3))
    running = asyncio.create_task(retention.run_now())
    await asyncio.sleep(5)
    assert db.sql("SELECT state, lease_until > clock_timestamp() FROM retention_runs") == [("running", True)]
    await retention.operator.cancel("inbound_events", by="ann")
    async with asyncio.timeout(60):
        (result,) = await running
    assert (result.status, result.deleted) == ("cancelled", 0)
    assert db.count("inbound_events") == 10

"""The horizon: the same line between deleted and kept rows for plan, backlog and delete."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.retention import UNTHROTTLED, RetentionDB
from watchkeeper.database import Database
from watchkeeper.retention import Condition, Policy
from watchkeeper.retention._model import Observers
from watchkeeper.retention._policy import MAX_KEEP, MIN_KEEP
from watchkeeper.retention.ledger._ledger import Ledger
from watchkeeper.retention.plan._backlog import read_backlog
from watchkeeper.retention.plan._plan import plan
from watchkeeper.retention.run._context import Run
from watchkeeper.retention.run._pressure import PressureWatch
from watchkeeper.retention.run._run import execute
from watchkeeper.retention.run._tuning import Tuning

HORIZON = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)  # when the clocks of Europe go forward
BC = "0044-03-15 BC"
BEFORE_ALL = datetime(1, 1, 2, tzinfo=UTC)  # as which -infinity and years BC are shown
TABLES = ("by_age", "by_place", "has_children")
# Microseconds around the horizon, the decades before and after it, and what is no instant.
AGES = st.one_of(
    st.integers(-3, 3), st.integers(-(10**15), 10**15), st.sampled_from([None, "infinity", "-infinity", BC])
)
KEEPS = st.one_of(st.just(timedelta(days=30)), st.timedeltas(MIN_KEEP, MAX_KEEP), st.just(MAX_KEEP))
ZONES = st.sampled_from(["UTC", "Asia/Kathmandu", "Europe/Kyiv", "America/New_York", "Australia/Lord_Howe"])


@pytest.fixture
def db(db: RetentionDB) -> RetentionDB:
    """The database with a table with an age index, one without, and a partitioned one."""
    columns = "(id int PRIMARY KEY, at timestamptz, kind text)"
    for table in TABLES:
        parted = " PARTITION BY HASH (id)" if table == "has_children" else ""
        db.sql(f"CREATE TABLE {table} {columns}{parted}")
        db.sql(f"GRANT SELECT, UPDATE, DELETE ON {table} TO keeper")
    db.sql("CREATE INDEX ON by_age (at)")
    for part in range(3):
        db.sql(
            f"CREATE TABLE in_parts_{part} PARTITION OF has_children"
            f" FOR VALUES WITH (MODULUS 3, REMAINDER {part})"
        )
    return db


def written(age: int | str | None) -> str | None:
    """Return an age as PostgreSQL reads it; a number is the distance from the horizon in microseconds."""
    return (HORIZON + timedelta(microseconds=age)).isoformat() if isinstance(age, int) else age


def is_old(age: int | str | None) -> bool:
    """Return whether an age is before the horizon; a missing age is not."""
    return age in {"-infinity", BC} or (isinstance(age, int) and age < 0)


def oldest(ages: Iterable[int | str | None]) -> datetime | None:
    """Return the oldest of these, as it is shown."""
    known = [HORIZON + timedelta(microseconds=age) if isinstance(age, int) else BEFORE_ALL for age in ages]
    return min(known, default=None)


@settings(max_examples=10)
@given(
    rows=st.lists(st.tuples(AGES, st.sampled_from("abcd")), max_size=40),
    held=st.sets(st.sampled_from("abc")),
    keep=KEEPS,
    zone=ZONES,
)
async def test_rows_before_the_horizon_and_not_held_are_deleted(
    db: RetentionDB, rows: list[tuple[int | str | None, str]], held: set[str], keep: timedelta, zone: str
) -> None:
    """At the horizon a row stays, a microsecond earlier it goes, in any time zone; plan and backlog agree."""
    db.sql(f"ALTER DATABASE {db.urls.name} SET timezone = '{zone}'")
    db.sql("UPDATE retention_holds SET released_at = now(), released_by = 'x' WHERE released_at IS NULL")
    old = {number for number, (age, _) in enumerate(rows) if is_old(age)}
    due = {number for number in old if rows[number][1] not in held}
    async with Database(db.urls.url) as database:
        ledger = Ledger(database, redact=str)
        for table in TABLES:
            policy = Policy(table=table, age_column="at", keep=keep)
            db.sql(f"TRUNCATE {table}")
            db.sql(
                f"INSERT INTO {table} SELECT * FROM unnest(%s::int[], %s::timestamptz[], %s::text[])",  # noqa: S608 - our names
                list(range(len(rows))),
                [written(age) for age, _ in rows],
                [kind for _, kind in rows],
            )
            await ledger.register([policy])
            for kind in held:
                hold = [Condition.parse(f"kind = {kind}")]
                await db.retention(policy).operator.hold(table, hold, reason="case 7", owner="legal")

            async with database.transaction() as conn, database.owner() as owner:
                planned = await plan(
                    conn, owner, policy, now=HORIZON + keep, limits=UNTHROTTLED, tuning=Tuning()
                )
                seen = await read_backlog(conn, policy, HORIZON + keep)
            assert (planned.horizon, planned.exact, seen.exact) == (HORIZON, True, True)
            assert (planned.rows, planned.held) == (len(due), len(old) - len(due))
            assert seen.rows == len(due)
            assert planned.oldest == seen.oldest == oldest(rows[number][0] for number in due)

            claim = replace(await ledger.claim_now(policy), horizon=HORIZON)
            result = await execute(
                Run(
                    database=database,
                    ledger=ledger,
                    policy=policy,
                    claim=claim,
                    limits=UNTHROTTLED,
                    stop=asyncio.Event(),
                    observer=Observers(),
                    pressure=PressureWatch(
                        database, free_space=lambda: None, on_missing_privilege=lambda _: None
                    ),
                    tuning=Tuning(),
                )
            )
            left = {number for (number,) in db.sql(f"SELECT id FROM {table}")}  # noqa: S608 - the same
            assert left == set(range(len(rows))) - due
            assert (result.status, result.deleted) == ("completed", len(due))


@settings(max_examples=10)
@given(keep=KEEPS, zone=ZONES)
async def test_horizon_is_exact_across_clock_changes(db: RetentionDB, keep: timedelta, zone: str) -> None:
    """To the microsecond, for the run and for the plan."""
    db.sql(f"ALTER DATABASE {db.urls.name} SET timezone = '{zone}'")
    policy = Policy(table="by_age", age_column="at", keep=keep)
    async with Database(db.urls.url) as database:
        ledger = Ledger(database, redact=str)
        await ledger.register([policy])
        claim = await ledger.claim_now(policy)
        assert claim.horizon.astimezone(UTC) == claim.started_at.astimezone(UTC) - keep
        await ledger.close(claim, "completed")
        (planned,) = await db.retention(policy, database=database).plan()
        assert timedelta(0) <= planned.horizon - claim.horizon.astimezone(UTC) < timedelta(minutes=1)

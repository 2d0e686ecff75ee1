"""Holds: held rows stay, in plan and delete alike, immediately, whatever else happens."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.retention import BOTH_SCANS, EVENTS, OPEN_RUN, SESSIONS, RetentionDB
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention import Condition, Policy

WHY: dict[str, Any] = {"reason": "case 7 of 2026", "owner": "legal"}


def where(*texts: str) -> list[Condition]:
    """Parse the conditions that an operator writes."""
    return [Condition.parse(text) for text in texts]


@BOTH_SCANS
async def test_held_rows_stay_in_plan_and_delete(db: RetentionDB, *, indexed: bool) -> None:
    """Both use one predicate; after the release the rows are deleted."""
    db.force_index_scans()
    db.make_table(indexed=indexed, old=3000)
    retention = db.retention(EVENTS)
    hold = await retention.operator.hold("inbound_events", where("id in ('40-7', '40-8', '40-9')"), **WHY)
    (plan,) = await retention.plan()
    assert (plan.rows, plan.held, [one.id for one in plan.holds]) == (2997, 3, [hold.id])
    (result,) = await retention.run_now()
    assert (result.status, result.deleted) == ("completed", 2997)
    assert db.sql("SELECT id FROM inbound_events ORDER BY id") == [("40-7",), ("40-8",), ("40-9",)]
    await retention.operator.release(hold.id, released_by="legal")
    (plan,) = await retention.plan()
    assert (plan.rows, plan.held, plan.holds) == (3, 0, ())
    (result,) = await retention.run_now()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("completed", 3, 0)


async def test_hold_waits_for_the_open_transaction(db: RetentionDB) -> None:
    """For a claim in progress as well as for a sweep."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    with psycopg.connect(db.urls.owner_url) as conn:
        conn.execute(OPEN_RUN)
        adding = asyncio.create_task(retention.operator.hold("inbound_events", [], **WHY))
        done, _ = await asyncio.wait({adding}, timeout=0.5)
        assert not done
        conn.commit()
    assert (await adding).table_name == "inbound_events"


async def test_hold_that_cannot_be_applied_stops_deletes(db: RetentionDB) -> None:
    """Its column was dropped, so what it holds is unknown."""
    db.make_table()
    db.sql("ALTER TABLE inbound_events ADD source text")
    db.fill("inbound_events", 40, 10)
    retention = await db.overdue(EVENTS)
    await retention.operator.hold("inbound_events", where("id = '40-1'"), **WHY)
    await retention.operator.hold("inbound_events", where("source = 'crm'"), **WHY)
    db.sql("ALTER TABLE inbound_events DROP source")
    (result,) = await retention.tick()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("failed", 0, 10)
    sentence = (
        "Nothing is deleted from inbound_events, because hold 2 on it cannot be applied: column t.source does"
        " not exist. Release it (`retention hold release 2`), or fix the table."
    )
    assert sentence in str(result.error)
    (plan,) = await retention.plan()
    assert sentence in (plan.problem or "")
    # Another hold can be added beside the broken one.
    assert (await retention.operator.hold("inbound_events", [], **WHY)).id == 3


async def test_held_rows_are_counted(db: RetentionDB) -> None:
    """Young ones too; a failed count is reported and leaves the hold in force."""
    db.make_table(old=10)
    db.fill("inbound_events", 1, 5)
    operator = db.retention(EVENTS).operator
    every = await operator.hold("inbound_events", [], **WHY)
    assert await operator.count_held(every) == 15
    none = await operator.hold("inbound_events", where("id = 'nosuch'"), **WHY)
    assert await operator.count_held(none) == 0
    with psycopg.connect(db.urls.owner_url) as other:
        other.execute("LOCK TABLE inbound_events IN ACCESS EXCLUSIVE MODE")
        assert await operator.count_held(every) is None


@pytest.mark.parametrize(
    ("table", "conditions", "more", "sentence"),
    [
        ("inbound_event", [], {}, "There is no policy on inbound_event. Did you mean inbound_events?"),
        (
            "inbound_events",
            ["nosuch = 1"],
            {},
            r"^The hold was not added: column t\.nosuch does not exist\.$",
        ),
        ("inbound_events", ["received_at < tomorrowish"], {}, "The hold was not added: .*tomorrowish"),
        ("inbound_events", [], {"reason": " "}, "needs a reason"),
        ("inbound_events", [], {"owner": ""}, "needs an owner"),
        ("inbound_events", [], {"until": datetime(2020, 1, 1, tzinfo=UTC)}, "expires in the future"),
    ],
)
async def test_invalid_hold_is_refused(
    db: RetentionDB, table: str, conditions: list[str], more: dict[str, Any], sentence: str
) -> None:
    """With a sentence, and nothing is stored."""
    db.make_table()
    with pytest.raises(ConfigurationError, match=sentence):
        await db.retention(EVENTS).operator.hold(table, where(*conditions), **WHY | more)
    assert db.count("retention_holds") == 0
    assert db.count("audit_log") == 0


async def test_each_change_of_a_hold_is_audited(db: RetentionDB) -> None:
    """Who, what and why; and the service can neither change nor remove past holds."""
    db.make_table()
    retention = db.retention(EVENTS)
    hold = await retention.operator.hold("inbound_events", where("id = '40-7'"), **WHY)
    await retention.operator.release(hold.id, released_by="judge")
    with pytest.raises(ConfigurationError, match="no hold 1 in force"):
        await retention.operator.release(hold.id, released_by="judge")
    entries = "SELECT actor_type, actor_id, action, entity, entity_id, payload->>'rows' FROM audit_log"
    assert db.sql(entries) == [
        ("user", "legal", "retention.hold", "inbound_events", "1", "id = '40-7'"),
        ("user", "judge", "retention.release", "inbound_events", "1", "id = '40-7'"),
    ]
    for statement in ("DELETE FROM retention_holds", "UPDATE retention_holds SET reason = 'x'"):
        async with db.database.connection() as conn:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await conn.execute(statement.encode())


async def test_hold_expires(db: RetentionDB) -> None:
    """From then on its rows are like all others, and the list marks it."""
    db.make_table(old=10)
    retention = db.retention(EVENTS, SESSIONS)
    await retention.operator.hold("inbound_events", [], until=datetime.now(UTC) + timedelta(days=1), **WHY)
    assert [result.deleted for result in await retention.run_now(["inbound_events"])] == [0]
    assert [hold.id for hold in await retention.operator.holds()] == [1]
    await retention.refresh_metrics()
    assert db.sample("retention_holds", table="inbound_events") == 1.0
    assert db.sample("retention_holds", table="chat_sessions") == 0.0
    db.sql("UPDATE retention_holds SET created_at = '2020-01-01', until = now() - interval '1 s'")
    assert [result.deleted for result in await retention.run_now(["inbound_events"])] == [10]
    assert await retention.operator.holds() == ()
    assert [hold.id for hold in await retention.operator.holds(ended=True)] == [1]


TEXTS = st.sampled_from(["a", "b", "it's", "", "%s", "\\", "ä"])
CONDITIONS = st.builds(
    lambda operator, values: Condition(
        column="source",
        operator=operator,
        values=() if "null" in operator else tuple(values) if operator == "in" else (values[0],),
    ),
    st.sampled_from(["=", "<>", "<", ">=", "in", "is null", "is not null"]),
    st.lists(TEXTS, min_size=1, max_size=3),
)


def meets(value: str | None, condition: Condition) -> bool:
    """Evaluate the condition as SQL does; unknown is not met."""
    if "null" in condition.operator:
        return (value is None) == (condition.operator == "is null")
    if value is None:
        return False
    if condition.operator == "in":
        return value in condition.values
    (other,) = condition.values
    answers = {"=": value == other, "<>": value != other, "<": value < other, ">=": value >= other}
    return answers[condition.operator]


@settings(max_examples=25)
@given(
    rows=st.lists(st.tuples(st.none() | TEXTS, st.booleans()), max_size=12),
    holds=st.lists(st.lists(CONDITIONS, max_size=2), max_size=3),
)
async def test_deleted_rows_are_old_and_not_held(
    db: RetentionDB, rows: list[tuple[str | None, bool]], holds: list[list[Condition]]
) -> None:
    """For any holds, the plan counts exactly the rows that are deleted."""
    db.sql("DROP TABLE IF EXISTS held_events")
    db.sql("UPDATE retention_holds SET released_at = now(), released_by = 'x' WHERE released_at IS NULL")
    db.sql('CREATE TABLE held_events (id int PRIMARY KEY, source text COLLATE "C", at timestamptz)')
    db.sql("GRANT SELECT, UPDATE, DELETE ON held_events TO keeper")
    for number, (source, old) in enumerate(rows):
        at = datetime.now(UTC) - timedelta(days=40 if old else 3)
        db.sql("INSERT INTO held_events VALUES (%s, %s, %s)", number, source, at)
    retention = db.retention(Policy(table="held_events", age_column="at", keep=timedelta(days=30)))
    for conditions in holds:
        await retention.operator.hold("held_events", conditions, **WHY)
    kept = {
        number
        for number, (source, old) in enumerate(rows)
        if not old or any(all(meets(source, one) for one in hold) for hold in holds)
    }
    gone = len(rows) - len(kept)
    (plan,) = await retention.plan()
    (result,) = await retention.run_now()
    assert (plan.rows, result.status, result.deleted) == (gone, "completed", gone)
    assert {number for (number,) in db.sql("SELECT id FROM held_events")} == kept

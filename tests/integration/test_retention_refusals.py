"""Tables that retention refuses to delete from, with a message, a count and an audit entry."""

import re
from datetime import timedelta

import pytest

from support.retention import BOTH_SCANS, EVENTS, OnDeleted, RetentionDB
from watchkeeper.exceptions import PolicyRefusedError
from watchkeeper.retention import Limits, Policy

REFERRING = "CREATE TABLE notes (event text REFERENCES inbound_events)"
INDEX = "CREATE INDEX ON notes (event)"


def on(table: str, age: str = "created_at", schema: str | None = None) -> Policy:
    """Return a policy of a month."""
    return Policy(table=table, age_column=age, keep=timedelta(days=30), schema=schema)


async def assert_refused(db: RetentionDB, policy: Policy, sentence: str) -> None:
    """Run a policy and check that the refusal is reported everywhere."""
    (result,) = await db.retention(policy).run_now()
    assert (result.status, result.deleted) == ("refused", 0)
    assert isinstance(result.error, PolicyRefusedError)
    assert sentence in str(result.error)
    assert [state for _, state, _ in db.runs(policy.name)] == ["refused"]
    (entry,) = db.audit_payloads(policy.name)
    assert (entry["deleted"], entry["status"]) == (0, "refused")
    assert sentence in entry["error"]["message"]
    assert db.sample("retention_runs_total", table=policy.name, status="refused") == 1
    (plan,) = await db.retention(policy).plan()
    assert sentence in (plan.problem or "")
    (line,) = db.lines("retention")
    assert (line["level"], line["status"]) == ("error", "refused")
    assert db.job_statuses()[-1] == "failed"


@pytest.mark.parametrize(
    ("statements", "policy"),
    [
        pytest.param(
            ["CREATE TABLE heir () INHERITS (audit_log)"],
            on("heir"),
            id="a table that inherits from the audit log",
        ),
        pytest.param(
            ["CREATE TABLE parent (created_at timestamptz NOT NULL)", "ALTER TABLE audit_log INHERIT parent"],
            on("parent"),
            id="a table that the audit log inherits from",
        ),
        pytest.param(
            [
                "CREATE TABLE parent (created_at timestamptz NOT NULL) PARTITION BY RANGE (created_at)",
                "CREATE SCHEMA old",
                "CREATE TABLE old.audit_log PARTITION OF parent DEFAULT",
            ],
            on("parent"),
            id="a table with an audit log of another schema as its partition",
        ),
        pytest.param(
            [
                "CREATE TABLE parent (started_at timestamptz NOT NULL)",
                "ALTER TABLE retention_runs INHERIT parent",
            ],
            on("parent", "started_at"),
            id="a table that the ledger inherits from",
        ),
    ],
)
async def test_parts_of_the_audit_log_are_never_pruned(
    db: RetentionDB, statements: list[str], policy: Policy
) -> None:
    """What the declaration cannot show is found in the catalogue, before anything is deleted."""
    for statement in statements:
        db.sql(statement)
    await assert_refused(db, policy, "which is never pruned (compliance)")


async def test_view_is_refused(db: RetentionDB) -> None:
    """A view could show any table, here the audit log."""
    db.sql("CREATE VIEW entries AS SELECT * FROM audit_log")
    await assert_refused(db, on("entries"), "entries is a view: a policy needs a table")


async def test_policy_that_bypassed_its_validation_is_refused_by_the_run(db: RetentionDB) -> None:
    """The database would refuse it a third time."""
    policy = on("harmless")
    object.__setattr__(policy, "table", "audit_log")
    await assert_refused(db, policy, "audit_log belongs to audit_log, which is never pruned")


async def test_renamed_audit_log_is_protected_by_its_triggers(db: RetentionDB) -> None:
    """The run fails, and no entry is deleted."""
    db.make_table()
    await db.retention(EVENTS).run_now()
    db.sql("ALTER TABLE audit_log RENAME TO journal")
    db.sql("CREATE VIEW audit_log AS SELECT * FROM journal")
    db.sql("GRANT SELECT, INSERT ON audit_log TO keeper")
    db.sql("GRANT SELECT, UPDATE, DELETE ON journal TO keeper")
    policy = Policy(table="journal", age_column="created_at", keep=timedelta(days=1))
    db.sql(
        "INSERT INTO journal (actor_type, actor_id, action, entity, created_at)"
        " VALUES ('user', 'u', 'a', 'e', '2020-01-01')"
    )
    before = db.count("journal")
    (result,) = await db.retention(policy).run_now()
    assert (result.status, result.deleted) == ("failed", 0)
    assert "audit_log is append-only" in str(result.error)
    assert db.count("journal") == before + 1


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        pytest.param(
            ["CREATE TABLE notes (event text REFERENCES inbound_events ON DELETE CASCADE)", INDEX],
            "also deletes from notes (constraint notes_event_fkey), uncounted",
            id="cascade",
        ),
        pytest.param(
            ["ALTER TABLE inbound_events ADD parent text REFERENCES inbound_events ON DELETE CASCADE"],
            "also deletes from inbound_events (constraint inbound_events_parent_fkey), uncounted",
            id="cascade into itself",
        ),
        pytest.param(
            [REFERRING],
            "would search all of notes (constraint notes_event_fkey): create an index",
            id="unindexed child",
        ),
        pytest.param(
            [REFERRING, "CREATE INDEX ON notes (event)"],
            "referred to from notes. As its owner: GRANT SELECT ON notes TO keeper;",
            id="child that the service may not read",
        ),
        pytest.param(
            [
                "CREATE SCHEMA crm",
                "CREATE TABLE crm.notes (event text REFERENCES inbound_events)",
                "CREATE INDEX ON crm.notes (event)",
                "GRANT SELECT ON crm.notes TO keeper",
            ],
            "has no access to. As its owner: GRANT USAGE ON SCHEMA crm TO keeper;",
            id="child in a schema that is closed",
        ),
        pytest.param(
            [
                REFERRING,
                INDEX,
                "GRANT SELECT ON notes TO keeper",
                "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
            ],
            "row-level security on notes hides rows from the service",
            id="child with row-level security",
        ),
        pytest.param(
            [
                "CREATE TABLE notes (event text REFERENCES inbound_events ON DELETE SET NULL, gone boolean)",
                "CREATE INDEX ON notes (event) WHERE gone",
            ],
            "would search all of notes",
            id="child with an index of some rows only",
        ),
        pytest.param(
            ["CREATE RULE keep AS ON DELETE TO inbound_events DO INSTEAD NOTHING"],
            "the rule keep on inbound_events changes what a DELETE does",
            id="rule",
        ),
        pytest.param(
            ["REVOKE DELETE, UPDATE ON inbound_events FROM keeper"],
            "the service lacks UPDATE, DELETE on inbound_events. As its owner: GRANT UPDATE, DELETE ON"
            " inbound_events TO keeper;",
            id="privileges",
        ),
        pytest.param(
            [
                "ALTER TABLE inbound_events ENABLE ROW LEVEL SECURITY",
                "CREATE POLICY half ON inbound_events USING (id > 'm')",
            ],
            "row-level security on inbound_events hides rows from the service",
            id="row-level security",
        ),
        pytest.param(
            ["ALTER TABLE inbound_events ALTER received_at TYPE timestamp"],
            "its column received_at is a timestamp without time zone",
            id="no time zone",
        ),
    ],
)
async def test_tables_whose_delete_would_mislead_are_refused(
    db: RetentionDB, statements: list[str], sentence: str
) -> None:
    """Rows that would be uncounted, hidden or very slow to delete; each sentence says how to fix it."""
    db.make_table(old=3)
    for statement in statements:
        db.sql(statement)
    await assert_refused(db, EVENTS, sentence)
    assert db.count("inbound_events") == 3


async def test_row_level_security_enabled_during_a_run_fails_it(db: RetentionDB) -> None:
    """The rest is not silently partial."""
    db.force_index_scans()
    db.make_table(old=5000)
    hide = "ALTER TABLE inbound_events ENABLE ROW LEVEL SECURITY"
    (result,) = await db.retention(EVENTS).run_now(observer=OnDeleted(lambda *_: db.sql(hide)))
    assert (result.status, result.deleted) == ("failed", 1000)
    assert "row-level security policy" in str(result.error)


async def test_schema_without_usage_is_refused(db: RetentionDB) -> None:
    """The sentence says what to grant."""
    db.sql("CREATE SCHEMA crm")
    db.make_table("crm.visits", "created_at")
    await assert_refused(db, on("visits", schema="crm"), "GRANT USAGE ON SCHEMA crm TO keeper;")


@BOTH_SCANS
@pytest.mark.parametrize("passes", [2, 4])
@pytest.mark.parametrize("kept", ["true", "id < '40-2'"], ids=["all rows", "some rows"])
async def test_trigger_that_keeps_rows_fails_the_run(
    db: RetentionDB, kept: str, passes: int, *, indexed: bool
) -> None:
    """The run says why, and has counted what was deleted."""
    db.tune(pass_waits=(timedelta(0),) * passes)
    db.make_table(indexed=indexed, old=3000)
    db.sql(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RETURN CASE WHEN OLD.id < '40-2' OR NOT TG_ARGV[0]::bool THEN NULL ELSE OLD END; END$$"
    )
    db.sql(
        "CREATE TRIGGER keep BEFORE DELETE ON inbound_events FOR EACH ROW EXECUTE FUNCTION"
        f" keep({'false' if kept == 'true' else 'true'})"
    )
    (result,) = await db.retention(EVENTS).run_now()
    assert result.status == "failed"
    assert "a BEFORE DELETE trigger keeps them" in str(result.error)
    left = db.count("inbound_events")
    assert (left == 3000) == (kept == "true")
    assert result.deleted == 3000 - left
    assert [entry["deleted"] for entry in db.audit_payloads()] == [3000 - left]


@BOTH_SCANS
async def test_deleting_most_of_a_table_needs_an_override(db: RetentionDB, *, indexed: bool) -> None:
    """The run is refused, audited and counted, and the plan says so before; a larger share is enough."""
    db.make_table(indexed=indexed, old=12_000)
    db.fill("inbound_events", 3, 8_000)
    retention = await db.overdue(EVENTS, limits=Limits(share=0.5))
    sentence = (
        r"12,000 of its 20,000 rows \(60%\) are older than .* a run may delete 50%.*--allow-share 0\.61"
    )
    (plan,) = await retention.plan()
    assert (plan.rows, re.search(sentence, plan.problem or "") is not None) == (12_000, True)
    (result,) = await retention.tick()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("refused", 0, 20_000)
    assert re.search(sentence, str(result.error))
    assert [entry["status"] for entry in db.audit_payloads()] == ["refused"]
    assert db.sample("retention_runs_total", table="inbound_events", status="refused") == 1.0
    assert await retention.tick() == []  # not tried again for its due
    assert [plan.problem for plan in await retention.plan(limits=Limits(share=0.61))] == [None]
    (result,) = await retention.run_now(limits=Limits(share=0.61))
    assert (result.status, result.deleted) == ("completed", 12_000)


async def test_small_table_may_be_deleted_entirely(db: RetentionDB) -> None:
    """Ten thousand rows are restored from a backup in a minute."""
    db.make_table(old=10_000)
    (result,) = await db.retention(EVENTS, limits=Limits(share=0.1)).run_now()
    assert (result.status, result.deleted) == ("completed", 10_000)


async def test_share_that_takes_too_long_to_count_is_estimated(
    db: RetentionDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a sample of the blocks."""
    monkeypatch.setattr("watchkeeper.retention.run._share_guard.COUNT_TIMEOUT", timedelta(milliseconds=1))
    db.make_table(indexed=False, old=90_000)
    db.fill("inbound_events", 3, 60_000)
    (result,) = await db.retention(EVENTS, limits=Limits(share=0.3)).run_now()
    assert result.status == "refused"
    found = re.search(r"about ([0-9,]+) of its ([0-9,]+) rows", str(result.error))
    assert found is not None
    old, rows = (int(number.replace(",", "")) for number in found.groups())
    assert rows == pytest.approx(150_000, rel=0.2)
    assert old == pytest.approx(90_000, rel=0.3)

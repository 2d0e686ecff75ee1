"""What retention refuses to delete from, with a sentence, a count and an audit entry."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from support.house import EVENTS, SESSIONS, House, look_up_rows, open_house
from watchkeeper.exceptions import PolicyRefusedError
from watchkeeper.retention import Limits, Policy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.postgres import DatabaseUrls


@pytest.fixture
async def house(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[House]:
    """A database to keep."""
    async with open_house(database_urls, tmp_path) as opened:
        yield opened


def on(table: str, age: str = "created_at", schema: str | None = None) -> Policy:
    """Make a policy of a month."""
    return Policy(table=table, age_column=age, keep=timedelta(days=30), schema=schema)


async def assert_refused(house: House, policy: Policy, sentence: str) -> None:
    """Run a policy and see it refused in every place where that is told."""
    (result,) = await house.retention(policy).run_now()
    assert (result.status, result.deleted) == ("refused", 0)
    assert isinstance(result.error, PolicyRefusedError)
    assert sentence in str(result.error)
    assert [state for _, state, _ in house.runs(policy.name)] == ["refused"]
    (entry,) = house.audited(policy.name)
    assert (entry["deleted"], entry["status"]) == (0, "refused")
    assert sentence in entry["error"]["message"]
    assert house.sample("retention_runs_total", table=policy.name, status="refused") == 1
    (plan,) = await house.retention(policy).plan()
    assert sentence in (plan.problem or "")
    (line,) = house.lines("retention")
    assert (line["level"], line["status"]) == ("error", "refused")
    assert house.job()[-1] == "failed"


@pytest.mark.parametrize(
    ("statements", "policy"),
    [
        pytest.param(
            ["CREATE TABLE heir () INHERITS (audit_log)"],
            on("heir"),
            id="a table that inherits from the audit log",
        ),
        pytest.param(
            [
                "CREATE TABLE parent (created_at timestamptz NOT NULL)",
                "ALTER TABLE audit_log INHERIT parent",
            ],
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
async def test_nothing_that_is_part_of_the_audit_log_is_pruned(
    house: House, statements: list[str], policy: Policy
) -> None:
    """What the declaration cannot know is found in the catalogue, before anything is deleted."""
    for statement in statements:
        house.sql(statement)
    await assert_refused(house, policy, "which is never pruned (compliance)")


async def test_a_view_of_the_audit_log_is_refused(house: House) -> None:
    """A policy takes a table; a view could be of anything."""
    house.sql("CREATE VIEW entries AS SELECT * FROM audit_log")
    await assert_refused(house, on("entries"), "entries is a view: a policy takes a table")


async def test_a_declaration_that_got_around_the_check_is_refused_when_it_is_carried_out(
    house: House,
) -> None:
    """The audit log is protected a second time, and by the database a third time."""
    policy = on("harmless")
    object.__setattr__(policy, "table", "audit_log")
    await assert_refused(house, policy, "audit_log belongs to audit_log, which is never pruned")


async def test_the_audit_log_under_another_name_is_kept_by_the_database(house: House) -> None:
    """Renamed, it still has its triggers: the run fails and no entry is gone."""
    house.make_table()
    await house.retention(EVENTS).run_now()
    house.sql("ALTER TABLE audit_log RENAME TO journal")
    house.sql("CREATE VIEW audit_log AS SELECT * FROM journal")
    house.sql("GRANT SELECT, INSERT ON audit_log TO keeper")
    house.sql("GRANT SELECT, UPDATE, DELETE ON journal TO keeper")
    policy = Policy(table="journal", age_column="created_at", keep=timedelta(days=1))
    house.sql(
        "INSERT INTO journal (actor_type, actor_id, action, entity, created_at)"
        " VALUES ('user', 'u', 'a', 'e', '2020-01-01')"
    )
    before = house.count("journal")
    (result,) = await house.retention(policy).run_now()
    assert (result.status, result.deleted) == ("failed", 0)
    assert "audit_log is append-only" in str(result.error)
    assert house.count("journal") == before + 1


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        pytest.param(
            [
                "CREATE TABLE notes (event text REFERENCES inbound_events ON DELETE CASCADE)",
                "CREATE INDEX ON notes (event)",
            ],
            "also deletes from notes (constraint notes_event_fkey), uncounted",
            id="cascade",
        ),
        pytest.param(
            [
                "ALTER TABLE inbound_events ADD parent text REFERENCES inbound_events ON DELETE CASCADE",
            ],
            "also deletes from inbound_events (constraint inbound_events_parent_fkey), uncounted",
            id="cascade into itself",
        ),
        pytest.param(
            ["CREATE TABLE notes (event text REFERENCES inbound_events)"],
            "would search all of notes (constraint notes_event_fkey): make an index",
            id="unindexed child",
        ),
        pytest.param(
            [
                "CREATE TABLE notes (event text REFERENCES inbound_events)",
                "CREATE INDEX ON notes (event)",
            ],
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
            "may not look into. As its owner: GRANT USAGE ON SCHEMA crm TO keeper;",
            id="child in a schema that is closed",
        ),
        pytest.param(
            [
                "CREATE TABLE notes (event text REFERENCES inbound_events)",
                "CREATE INDEX ON notes (event)",
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
async def test_a_delete_that_is_not_what_it_seems_is_refused(
    house: House, statements: list[str], sentence: str
) -> None:
    """Rows that would go uncounted, be hidden, or take for ever: each has its sentence with what mends it."""
    house.make_table()
    house.fill("inbound_events", 40, 3)
    for statement in statements:
        house.sql(statement)
    await assert_refused(house, EVENTS, sentence)
    assert house.count("inbound_events") == 3


async def test_rows_that_are_hidden_in_the_middle_of_a_run_fail_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row-level security that comes later does not make the rest of the run silently partial."""
    look_up_rows(monkeypatch)
    house.make_table()
    house.fill("inbound_events", 40, 5000)

    def hide(_table: str, _rows: int) -> None:
        house.sql("ALTER TABLE inbound_events ENABLE ROW LEVEL SECURITY")

    (result,) = await house.retention(EVENTS).run_now(None, hide)
    assert (result.status, result.deleted) == ("failed", 1000)
    assert "row-level security policy" in str(result.error)


async def test_a_schema_that_is_closed_to_the_service_is_refused(house: House) -> None:
    """The sentence says what to grant."""
    house.sql("CREATE SCHEMA crm")
    house.make_table("crm.visits", "created_at")
    await assert_refused(house, on("visits", schema="crm"), "GRANT USAGE ON SCHEMA crm TO keeper;")


async def test_a_policy_that_is_refused_is_not_tried_again_for_its_due(house: House) -> None:
    """Nothing mends it but a human; the next day asks again."""
    house.make_table()
    house.sql("REVOKE DELETE ON inbound_events FROM keeper")
    retention = await house.due(EVENTS)
    assert [result.status for result in await retention.tick()] == ["refused"]
    house.sql("UPDATE retention_runs SET finished_at = finished_at - interval '1 day'")
    assert await retention.tick() == []


async def test_children_that_restrict_and_are_indexed_let_the_others_go(house: House) -> None:
    """A row that is still referred to stays, and the others go; once its child is pruned, it goes too."""
    house.make_table()
    house.fill("inbound_events", 40, 3)
    house.make_table("notes", "created_at")
    house.sql("ALTER TABLE notes ADD event text REFERENCES inbound_events")
    house.sql("CREATE INDEX ON notes (event)")
    house.sql("INSERT INTO notes VALUES ('n', now(), '40-1')")
    (result,) = await house.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("completed", 2)
    assert house.sql("SELECT id FROM inbound_events") == [("40-1",)]
    house.sql("DELETE FROM notes")
    (result,) = await house.retention(EVENTS).run_now()
    assert (result.status, result.deleted) == ("completed", 1)


@pytest.mark.parametrize("indexed", [True, False], ids=["by age", "by place"])
@pytest.mark.parametrize("passes", [2, 4])
@pytest.mark.parametrize("kept", ["true", "id < '40-2'"], ids=["all rows", "some rows"])
async def test_a_trigger_that_keeps_rows_fails_the_run(
    house: House, monkeypatch: pytest.MonkeyPatch, kept: str, passes: int, *, indexed: bool
) -> None:
    """The run ends, says why, and has counted what did go."""
    monkeypatch.setattr("watchkeeper.retention.run._pruning.PASS_WAITS", (timedelta(0),) * passes)
    house.make_table(indexed=indexed)
    house.fill("inbound_events", 40, 3000)
    house.sql(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RETURN CASE WHEN OLD.id < '40-2' OR NOT TG_ARGV[0]::bool THEN NULL ELSE OLD END; END$$"
    )
    house.sql(
        "CREATE TRIGGER keep BEFORE DELETE ON inbound_events FOR EACH ROW EXECUTE FUNCTION"
        f" keep({'false' if kept == 'true' else 'true'})"
    )
    (result,) = await house.retention(EVENTS).run_now()
    assert result.status == "failed"
    assert "a BEFORE DELETE trigger keeps them" in str(result.error)
    left = house.count("inbound_events")
    assert (left == 3000) == (kept == "true")
    assert result.deleted == 3000 - left
    assert [entry["deleted"] for entry in house.audited()] == [3000 - left]


async def test_a_refused_table_does_not_stop_the_others(house: House) -> None:
    """Each policy is on its own."""
    house.make_both()
    house.sql("REVOKE DELETE ON inbound_events FROM keeper")
    results = await house.retention(EVENTS, SESSIONS).run_now()
    assert [result.status for result in results] == ["refused", "completed"]


@pytest.mark.parametrize("indexed", [True, False], ids=["by age", "by place"])
async def test_most_of_a_table_does_not_go_without_an_operators_word(house: House, *, indexed: bool) -> None:
    """The run is refused, audited and counted, the plan says so before; a share that is enough will do."""
    house.make_table(indexed=indexed)
    house.fill("inbound_events", 40, 12_000)
    house.fill("inbound_events", 3, 8_000)
    retention = await house.due(EVENTS, limits=Limits(share=0.5))
    sentence = r"12,000 of its 20,000 rows \(60%\) are older than .* a run may take 50%.*--allow-share 0\.61"
    (plan,) = await retention.plan()
    assert (plan.rows, re.search(sentence, plan.problem or "") is not None) == (12_000, True)
    (result,) = await retention.tick()
    assert (result.status, result.deleted, house.count("inbound_events")) == ("refused", 0, 20_000)
    assert re.search(sentence, str(result.error))
    assert [entry["status"] for entry in house.audited()] == ["refused"]
    assert house.sample("retention_runs_total", table="inbound_events", status="refused") == 1.0
    assert await retention.tick() == []  # not tried again for its due
    assert [plan.problem for plan in await retention.plan(limits=Limits(share=0.61))] == [None]
    (result,) = await retention.run_now(limits=Limits(share=0.61))
    assert (result.status, result.deleted) == ("completed", 12_000)


async def test_a_small_table_may_go_as_a_whole(house: House) -> None:
    """Ten thousand rows are no mistake that cannot be mended from a backup in a minute."""
    house.make_table()
    house.fill("inbound_events", 40, 10_000)
    (result,) = await house.retention(EVENTS, limits=Limits(share=0.1)).run_now()
    assert (result.status, result.deleted) == ("completed", 10_000)


async def test_a_share_that_cannot_be_counted_in_time_is_estimated(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of the blocks says about how many rows are old."""
    monkeypatch.setattr("watchkeeper.retention.table._share.COUNT_TIMEOUT_MS", 1)
    house.make_table(indexed=False)
    house.fill("inbound_events", 40, 90_000)
    house.fill("inbound_events", 3, 60_000)
    (result,) = await house.retention(EVENTS, limits=Limits(share=0.3)).run_now()
    assert result.status == "refused"
    found = re.search(r"about ([0-9,]+) of its ([0-9,]+) rows", str(result.error))
    assert found is not None
    old, rows = (int(number.replace(",", "")) for number in found.groups())
    assert rows == pytest.approx(150_000, rel=0.2)
    assert old == pytest.approx(90_000, rel=0.3)

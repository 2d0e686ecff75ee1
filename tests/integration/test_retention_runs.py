"""Runs on a real server: what is deleted, what stays, and what is recorded."""

import asyncio
import re
from datetime import datetime, timedelta

import pytest

from support.retention import BOTH_SCANS, EVENTS, SESSIONS, OnDeleted, RetentionDB
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention import Limits, Policy
from watchkeeper.retention._schedule import Schedule


async def test_each_pruned_table_writes_one_audit_entry(db: RetentionDB) -> None:
    """The entry names job, table and run, and has the number of rows and the horizon."""
    db.make_contract_tables()
    await (await db.overdue()).tick()
    entries = db.sql("SELECT actor_type, actor_id, action, entity FROM audit_log ORDER BY id")
    assert entries == [
        ("system", "retention-job", "retention.prune", "inbound_events"),
        ("system", "retention-job", "retention.prune", "chat_sessions"),
    ]
    payload = db.audit_payloads("inbound_events")[0]
    assert payload.keys() == {
        "deleted",
        "run",
        "status",
        "trigger",
        "due",
        "attempt",
        "horizon",
        "duration_ms",
    }
    assert (payload["deleted"], payload["status"], payload["trigger"]) == (3, "completed", "schedule")
    ((run, horizon, started, audit_id),) = db.sql(
        "SELECT id, horizon, started_at, audit_id FROM retention_runs WHERE table_name = 'inbound_events'"
    )
    assert payload["run"] == run
    assert datetime.fromisoformat(payload["horizon"]) == horizon == started - timedelta(days=30)
    assert db.sql("SELECT entity FROM audit_log WHERE id = %s", audit_id) == [("inbound_events",)]


async def test_run_writes_its_log_lines(db: RetentionDB) -> None:
    """The job is scheduled, started and completed, and each table has its line."""
    db.make_contract_tables()
    await (await db.overdue()).tick()
    assert db.job_statuses() == ["scheduled", "started", "completed"]
    assert all(line["name"] == "retention" and line["level"] == "info" for line in db.lines("job"))
    assert [(line["table"], line["deleted"]) for line in db.lines("retention")] == [
        ("inbound_events", 3),
        ("chat_sessions", 2),
    ]
    first = db.lines("retention")[0]
    assert list(first)[:7] == ["level", "time", "service", "env", "type", "table", "deleted"]


async def test_scheduled_line_has_the_next_time_in_utc(db: RetentionDB) -> None:
    """Whatever the zone of the schedule."""
    retention = db.retention(EVENTS, schedule=Schedule(timezone="Africa/Kigali"))
    await retention.register()
    (line,) = db.lines("job")
    assert line["due"].endswith("T01:00:00Z")


async def test_run_sets_its_metrics(db: RetentionDB) -> None:
    """Runs by status are at 0 from the start; rows, success and since follow what happened."""
    db.make_contract_tables()
    await db.retention().refresh_metrics()  # not registered yet
    assert db.sample("retention_policy_since_timestamp_seconds", table="inbound_events") is None
    retention = await db.overdue()
    for status in ("completed", "failed", "refused", "cancelled"):
        assert db.sample("retention_runs_total", table="inbound_events", status=status) == 0
    assert db.sample("retention_last_success_timestamp_seconds", table="inbound_events") is None
    await retention.tick()
    await retention.refresh_metrics()
    assert db.sample("retention_runs_total", table="inbound_events", status="completed") == 1
    assert db.sample("retention_rows_deleted_total", table="inbound_events") == 3
    assert db.sample("retention_run_duration_seconds_count", table="inbound_events") == 1
    ((finished, since),) = db.sql(
        "SELECT finished_at, since FROM retention_runs JOIN retention_policies USING (table_name)"
        " WHERE table_name = 'inbound_events'"
    )
    success = db.sample("retention_last_success_timestamp_seconds", table="inbound_events")
    assert success == pytest.approx(finished.timestamp())
    shown_since = db.sample("retention_policy_since_timestamp_seconds", table="inbound_events")
    assert shown_since == pytest.approx(since.timestamp())


async def test_last_success_is_read_from_the_ledger(db: RetentionDB) -> None:
    """A restarted service knows when retention last completed; before the first start there is no value."""
    db.make_table()
    await db.retention(EVENTS).refresh_metrics()
    for name in ("retention_policy_since_timestamp_seconds", "retention_last_success_timestamp_seconds"):
        assert db.sample(name, table="inbound_events") is None
    await (await db.overdue(EVENTS)).tick()
    db.reset_metrics()
    await db.retention(EVENTS).refresh_metrics()
    assert db.sample("retention_last_success_timestamp_seconds", table="inbound_events") is not None
    assert db.sample("retention_rows_deleted_total", table="inbound_events") == 0


async def test_first_start_does_not_catch_up(db: RetentionDB) -> None:
    """A time before the policy was first registered is not run."""
    db.make_contract_tables()
    retention = db.retention()
    assert await retention.tick() == []
    assert db.count("inbound_events") == 4
    assert db.job_statuses() == ["scheduled"]


async def test_each_scheduled_time_is_run_once(db: RetentionDB) -> None:
    """Checking again finds nothing, from another replica or for an earlier time either."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    before = db.schedule.time
    assert len(await retention.tick()) == 1
    assert await retention.tick() == []
    assert await db.retention(EVENTS).tick() == []
    db.schedule.time = before + timedelta(seconds=30)
    assert len(await retention.tick()) == 1
    db.schedule.time = before
    assert await retention.tick() == []
    assert len(db.audit_payloads()) == 2


async def test_failing_table_does_not_stop_the_others(db: RetentionDB) -> None:
    """A missing table and a missing column fail with a message each; the job's line has the first."""
    db.make_table("chat_sessions", "updated_at")
    db.make_table("other", "at")
    db.fill("chat_sessions", 91, 2, "updated_at")
    wrong = Policy(table="other", age_column="made_at", keep=timedelta(days=1))
    results = await (await db.overdue(EVENTS, wrong, SESSIONS)).tick()
    assert [result.status for result in results] == ["failed", "failed", "completed"]
    assert "There is no table inbound_events" in str(results[0].error)
    assert "The table other has no column made_at" in str(results[1].error)
    assert db.count("chat_sessions") == 0
    assert [entry["deleted"] for entry in db.audit_payloads()] == [0, 0, 2]
    assert db.job_statuses() == ["scheduled", "started", "failed"]
    line = db.lines("job")[-1]
    assert (line["level"], line["tables"]) == ("error", ["inbound_events", "other"])
    assert line["error"]["type"].endswith("RetentionError")
    assert line["error"]["message"].startswith("There is no table inbound_events")
    assert line["error"]["stack"]
    assert db.sample("retention_runs_total", table="inbound_events", status="failed") == 1
    assert [run["level"] for run in db.lines("retention")] == ["error", "error", "info"]


async def test_successful_retry_is_the_last_attempt(db: RetentionDB) -> None:
    """The missing table is created, the second attempt completes, and there is no third."""
    retention = await db.overdue(EVENTS)
    await retention.tick()
    db.make_table()
    db.fill("inbound_events", 31, 3)
    db.sql("UPDATE retention_runs SET finished_at = finished_at - interval '1 min'")
    assert [result.deleted for result in await retention.tick()] == [3]
    db.sql("UPDATE retention_runs SET finished_at = finished_at - interval '1 day'")
    assert await retention.tick() == []
    assert db.runs() == [(1, "failed", 0), (2, "completed", 3)]


async def test_manual_run_does_not_replace_the_scheduled_one(db: RetentionDB) -> None:
    """The day's run and its audit entry still follow."""
    db.make_table()
    retention = await db.overdue(EVENTS)
    await retention.run_now()
    assert [result.status for result in await retention.tick()] == ["completed"]
    assert [entry["trigger"] for entry in db.audit_payloads()] == ["manual", "schedule"]


async def test_table_without_a_policy_is_refused_with_a_suggestion(db: RetentionDB) -> None:
    """A typo prunes nothing."""
    with pytest.raises(
        ConfigurationError, match=r"no policy on inbound_event\. Did you mean inbound_events\?"
    ):
        await db.retention().run_now(["inbound_event"])
    with pytest.raises(ConfigurationError, match="Known policies: inbound_events, chat_sessions"):
        await db.retention().plan(["xyz"])


async def test_changed_policy_keeps_its_registration_time(db: RetentionDB) -> None:
    """A new duration takes effect with the next run, and is not a first start."""
    db.make_table()
    db.fill("inbound_events", 20, 5)
    await db.overdue(EVENTS)
    shorter = Policy(table="inbound_events", age_column="received_at", keep=timedelta(days=10))
    assert [result.deleted for result in await db.retention(shorter).tick()] == [5]
    ((keep, late),) = db.sql("SELECT keep, declared_at > since + interval '9 days' FROM retention_policies")
    assert (keep, late) == (timedelta(days=10), True)


@BOTH_SCANS
async def test_many_rows_are_deleted_in_many_transactions(db: RetentionDB, *, indexed: bool) -> None:
    """With and without an age index no transaction is large, and they add up."""
    db.force_index_scans()
    db.make_table(indexed=indexed, old=12_000)
    db.fill("inbound_events", 10, 500)
    db.sql("INSERT INTO inbound_events VALUES ('no age', NULL)")
    batches: list[int] = []
    (plan,) = await db.retention(EVENTS).plan()
    assert (plan.rows, plan.exact, plan.strategy) == (12_000, True, "index scan" if indexed else "block scan")
    await db.retention(EVENTS).run_now(observer=OnDeleted(lambda _, rows: batches.append(rows)))
    assert sum(batches) == 12_000
    assert len(batches) > 2
    assert db.count("inbound_events") == 501
    assert db.sql("SELECT count(*) FROM inbound_events WHERE received_at IS NULL") == [(1,)]


async def test_many_rows_of_one_age_are_deleted(db: RetentionDB) -> None:
    """A bulk import with one age does not stop a cursor on the age."""
    db.force_index_scans()
    db.make_table()
    db.sql("INSERT INTO inbound_events SELECT g, '2020-01-01' FROM generate_series(1, 5000) g")
    assert [result.deleted for result in await db.retention(EVENTS).run_now()] == [5000]


async def test_plan_estimates_a_slow_count(db: RetentionDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the planner's estimate, and says so."""
    db.make_table(old=5000)
    db.sql("ANALYZE inbound_events")
    monkeypatch.setattr("watchkeeper.retention.plan._plan.COUNT_TIMEOUT", timedelta(milliseconds=1))
    db.sql("INSERT INTO inbound_events SELECT g, '2020-01-01' FROM generate_series(1, 100000) g")
    db.sql("ANALYZE inbound_events")
    (plan,) = await db.retention(EVENTS).plan()
    assert plan.exact is False
    assert plan.oldest is None
    assert plan.rows == pytest.approx(105_000, rel=0.2)


async def test_interrupted_job_starts_no_further_run(db: RetentionDB) -> None:
    """The current run ends with its transaction; the rest is left to another replica or the next start."""
    db.make_contract_tables()
    retention = await db.overdue()
    db.slow_down(0.3)
    asyncio.get_running_loop().call_later(0.15, retention.interrupt)
    assert [(result.table, result.status) for result in await retention.tick()] == [
        ("inbound_events", "stopped")
    ]
    assert db.job_statuses() == ["scheduled", "started", "scheduled"]
    db.sql("DROP TRIGGER act ON inbound_events")
    assert [(result.table, result.status) for result in await db.retention().tick()] == [
        ("inbound_events", "completed"),
        ("chat_sessions", "completed"),
    ]


async def test_plan_shows_bytes_and_duration(any_db: RetentionDB) -> None:
    """The rows' part of table and indexes; the default rate, then that of the last runs."""
    db = any_db
    db.make_table(old=40_000)
    db.fill("inbound_events", 3, 10_000)
    db.sql("INSERT INTO inbound_events SELECT 'ageless-' || g, NULL FROM generate_series(1, 12) g")
    db.sql("ANALYZE inbound_events")
    ((size,),) = db.sql("SELECT pg_total_relation_size('inbound_events')")
    retention = db.retention(EVENTS)
    (plan,) = await retention.plan()
    assert plan.bytes == pytest.approx(0.8 * size, rel=0.02)
    assert timedelta(seconds=0.1) < plan.duration < timedelta(seconds=2)
    assert (plan.ageless, plan.index) == (12, ())
    (half,) = await retention.plan(limits=Limits(share=1.0, budget=0.1))
    assert half.duration > plan.duration * 5
    await retention.run_now()
    db.sql("UPDATE retention_runs SET finished_at = started_at + interval '40 s'")  # 1,000 rows a second
    db.fill("inbound_events", 50, 5_000)
    (plan,) = await retention.plan()
    assert plan.duration.total_seconds() == pytest.approx(5.1, abs=0.2)


@pytest.mark.parametrize(
    ("rows", "indexed", "strategy", "why"),
    [
        (
            10,
            True,
            "index scan",
            r"0\.1% of sampled rows are .* and the index inbound_events_received_at_idx finds them",
        ),
        (10, False, "block scan", r"0\.1% of sampled rows .* and no index begins with received_at"),
        (9000, True, "block scan", r"47\.4% of sampled rows are past the horizon"),
    ],
)
async def test_plan_shows_the_scan_and_its_reason(
    db: RetentionDB, rows: int, strategy: str, why: str, *, indexed: bool
) -> None:
    """By index if few rows are old and there is one, else by block."""
    db.make_table(indexed=indexed, old=rows)
    db.fill("inbound_events", 3, 10_000)
    (plan,) = await db.retention(EVENTS).plan()
    assert plan.strategy == strategy
    assert re.fullmatch(why, plan.why)
    statement = ("CREATE INDEX CONCURRENTLY ON public.inbound_events (received_at)",)
    assert plan.index == (() if indexed else statement)

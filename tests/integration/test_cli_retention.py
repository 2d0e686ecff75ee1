"""The output of the retention and audit commands, in a pipe and on a terminal."""

import json
import shlex

import psycopg
import pytest

from support.retention import RetentionDB
from support.terminal import Terminal, check_golden, run_command
from watchkeeper.retention import Condition


@pytest.fixture
def db(db: RetentionDB) -> RetentionDB:
    """The database with the contract's two tables."""
    db.make_contract_tables()
    db.sql("ANALYZE inbound_events, chat_sessions")
    return db


async def test_commands_in_a_pipe(db: RetentionDB) -> None:
    """Each prints one line a policy, and its exit code says whether it succeeded."""
    commands = (
        "retention plan",
        "retention run --yes",
        "retention status",
        "audit list",
        "retention plan chat_sessions",
        "retention history",
    )
    check_golden("retention_pipe", *((command, run_command(db, *command.split())) for command in commands))
    assert (db.count("inbound_events"), db.count("chat_sessions")) == (1, 1)


async def test_holds_in_a_pipe_and_as_json(db: RetentionDB) -> None:
    """The list and the plan show the holds; an invalid hold is one line of error."""
    add = ("retention", "hold", "add", "inbound_events", "--reason", "case 7", "--owner", "legal")
    commands = (
        (*add, "--where", "id = 31-1", "--where", "received_at is not null"),
        (*add, "--where", "id in (31-2, 'x, y')", "--until", "2100-01-31", "--json"),
        ("retention", "hold", "list"),
        ("retention", "plan", "inbound_events"),
        ("retention", "plan", "inbound_events", "--json"),
        ("retention", "run", "inbound_events", "--yes"),
        ("retention", "history"),
        ("retention", "hold", "release", "1", "--by", "judge"),
        ("retention", "hold", "release", "1", "--by", "judge"),
        ("retention", "hold", "list", "--ended"),
        (*add, "--where", "id like x"),
        (*add, "--where", "nosuch = 1"),
        (*add, "--where", "id = nosuch"),
        (*add, "--where", "id = a or id = b"),
        (*add, "--all", "--until", "soon"),
        ("audit", "list", "--limit", "1"),
    )
    answers = [(shlex.join(command), run_command(db, *command)) for command in commands]
    check_golden("retention_holds", *answers)
    (refused,) = [answer for command, answer in answers if "nosuch = 1" in command]
    assert refused.err.splitlines()[-1] == (
        "watchkeeper: The hold was not added: column t.nosuch does not exist."
    )
    assert db.sql("SELECT id FROM inbound_events WHERE id LIKE '31-%%' ORDER BY id") == [("31-1",), ("31-2",)]


async def test_plan_counts_rows_that_others_refer_to(db: RetentionDB) -> None:
    """The run keeps them and deletes the others."""
    db.sql("CREATE TABLE notes (event text REFERENCES inbound_events)")
    db.sql("CREATE INDEX ON notes (event)")
    db.sql("GRANT SELECT ON notes TO keeper")
    db.sql("INSERT INTO notes VALUES ('31-1')")
    commands = [
        f"retention {action} inbound_events" for action in ("plan", "plan --json", "run --yes", "plan")
    ]
    answers = [(command, run_command(db, *command.split())) for command in commands]
    check_golden("retention_referenced", *answers)
    assert db.sql("SELECT id FROM inbound_events WHERE id LIKE '31-%%'") == [("31-1",)]


def open_run(db: RetentionDB) -> None:
    """Add a run to the ledger that has deleted a quarter of its rows and waits."""
    db.sql(
        "INSERT INTO retention_runs (table_name, trigger, due_at, attempt, lease_until, horizon, started_at,"
        " rows_deleted, rows_planned, waiting) VALUES ('inbound_events', 'schedule', now(), 1,"
        " now() + interval '1 hour', now(), now() - interval '10 hours', 1200000, 4800000,"
        " 'replication lag: the replica r1 is 300 MiB behind')"
    )


async def test_pause_resume_and_cancel_in_a_pipe_and_as_json(db: RetentionDB) -> None:
    """Each prints what follows from it, or one line of error where it does not apply."""
    before = (
        "retention pause inbound_events --by ann",
        "retention pause inbound_events --by bob",
        "retention status inbound_events",
        "retention run inbound_events --yes",
        "retention resume inbound_events --by ann",
        "retention resume inbound_events --by ann --json",
        "retention cancel inbound_events",
        "retention pause chat_sessions --by ann --json",
        "audit list --limit 1",
    )
    while_it_runs = (
        "retention status inbound_events",
        "retention pause inbound_events --by ann",
        "retention resume inbound_events --by ann --json",
        "retention cancel inbound_events --by ann",
        "retention cancel inbound_events --by bob",
    )
    answers = [(command, run_command(db, *command.split())) for command in before]
    open_run(db)
    answers += [(command, run_command(db, *command.split())) for command in while_it_runs]
    check_golden("retention_control", *answers)


async def test_progress_on_a_terminal(db: RetentionDB) -> None:
    """The status shows a run's progress and rate, what it waits for, and who paused a policy."""
    await db.retention().register()
    open_run(db)
    await db.retention().operator.pause("chat_sessions", by="ann")
    check_golden("retention_progress", ("retention status", Terminal(db, "retention", "status").end()))


async def test_commands_as_json(db: RetentionDB) -> None:
    """Stdout has one JSON document and nothing else."""
    commands = (
        "retention plan --json",
        "retention run --yes --json",
        "retention status --json",
        "retention history inbound_events --limit 1 --json",
        "audit list --json",
    )
    answers = [(command, run_command(db, *command.split())) for command in commands]
    for _, answer in answers:
        assert isinstance(json.loads(answer.out), list)
    check_golden("retention_json", *answers)


async def test_plan_says_why_a_policy_cannot_run(db: RetentionDB) -> None:
    """Paused, refused by its share, or with an open run: the reason, what it would delete, exit code 1."""
    db.fill("chat_sessions", 99, 10_001, "updated_at")
    db.sql("ANALYZE chat_sessions")
    await db.retention().operator.hold(
        "chat_sessions", [Condition.parse("id = nosuch")], reason="case 7", owner="legal"
    )
    commands = ("retention plan", "retention plan inbound_events --json")
    answers = [("retention plan", run_command(db, "retention", "plan"))]
    await db.retention().operator.pause("inbound_events", by="ann")
    answers += [(command, run_command(db, *command.split())) for command in commands]
    open_run(db)
    await db.retention().operator.resume("inbound_events", by="ann")
    answers.append(("retention plan inbound_events", run_command(db, "retention", "plan", "inbound_events")))
    check_golden("retention_blocked", *answers)
    assert [answer.code for _, answer in answers] == [1, 1, 1, 1]


async def test_run_on_a_terminal_leaves_out_policies_that_cannot_run(db: RetentionDB) -> None:
    """A paused policy is neither in the question nor run, and the exit code is 1."""
    await db.retention().operator.pause("inbound_events", by="ann")
    terminal = Terminal(db, "retention", "run")
    terminal.wait_for("Delete 2 rows of chat_sessions now? [y/N]")
    terminal.type("y\n")
    answer = terminal.end()
    assert answer.code == 1
    assert "chat_sessions: completed, 2 rows deleted" in answer.out
    assert "inbound_events: failed" not in answer.out
    assert (db.count("inbound_events"), db.count("chat_sessions")) == (4, 1)


async def test_run_on_a_terminal_that_would_delete_nothing_does_not_ask(db: RetentionDB) -> None:
    """No old rows is a success; no policy that can run is a failure."""
    db.sql("DELETE FROM inbound_events")
    answer = Terminal(db, "retention", "run", "inbound_events").end()
    assert (answer.code, answer.out.splitlines()[-1]) == (0, "There is nothing to delete.")
    await db.retention().operator.pause("inbound_events", by="ann")
    answer = Terminal(db, "retention", "run", "inbound_events").end()
    assert (answer.code, answer.out.splitlines()[-1]) == (1, "No policy can run.")
    assert "[y/N]" not in answer.out
    assert db.runs() == []


async def test_holds_on_a_terminal(db: RetentionDB) -> None:
    """A long reason is folded, not cut; `--ended` adds when a hold was released."""
    operator = db.retention().operator
    why = "case 7: " + "what the court wants " * 6
    for table in ("inbound_events", "chat_sessions"):
        await operator.hold(table, [Condition.parse("id = 31-1")], reason=why, owner="legal")
    await operator.release(2, released_by="judge")
    commands = ("retention hold list", "retention hold list --ended")
    answers = [(command, Terminal(db, *command.split()).end()) for command in commands]
    check_golden("retention_holds_terminal", *answers)
    assert all("…" not in answer.out for _, answer in answers)


async def test_status_of_a_paused_policy_has_no_next_run(db: RetentionDB) -> None:
    """It has none until it is resumed."""
    await db.retention().operator.pause("inbound_events", by="ann")
    both = json.loads(run_command(db, "retention", "status", "--json").out)
    assert [(one["table"], one["next_due"] is None) for one in both] == [
        ("inbound_events", True),
        ("chat_sessions", False),
    ]


async def test_invalid_budget_is_a_usage_error(db: RetentionDB) -> None:
    """The message says which values are valid."""
    for given in ("abc", "7", "nan"):
        answer = run_command(db, "retention", "run", "--yes", "--budget", given)
        assert answer.code == 2
        assert "argument --budget: a share is greater than 0 and at most 1, such as 0.5" in answer.err


async def test_policies_that_fail(db: RetentionDB) -> None:
    """Each prints a sentence and no traceback, and the exit code is 1; both policies run."""
    db.sql("ALTER TABLE inbound_events RENAME TO moved")
    db.sql("REVOKE DELETE ON chat_sessions FROM keeper")
    commands = (
        "retention plan",
        "retention run --yes",
        "retention status",
        "audit list --entity inbound_events",
    )
    answers = [(command, run_command(db, *command.split())) for command in commands]
    check_golden("retention_failures", *answers)
    assert "Traceback" not in "".join(answer.err for _, answer in answers)


async def test_log_lines_go_to_stderr(db: RetentionDB) -> None:
    """Stdout has the command's output only."""
    answer = run_command(db, "retention", "run", "--yes")
    kinds = [json.loads(line)["type"] for line in answer.err.splitlines()]
    assert kinds[-4:] == ["job", "retention", "retention", "job"]


async def test_run_needs_a_terminal_or_yes(db: RetentionDB) -> None:
    """Without either it is a usage error, and deletes nothing."""
    answer = run_command(db, "retention", "run")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.endswith("watchkeeper: There is no terminal to ask on: add --yes to delete rows.\n")
    assert db.count("inbound_events") == 4


async def test_run_on_a_terminal_asks_and_shows_progress(db: RetentionDB) -> None:
    """It prints the plan, a question, a progress bar for each table, and a line for each run."""
    terminal = Terminal(db, "retention", "run")
    terminal.wait_for("Delete 5 rows now? [y/N]")
    assert db.count("inbound_events") == 4
    terminal.type("y\n")
    answer = terminal.end()
    assert answer.code == 0
    assert "What a run would delete now" in answer.out
    assert "━" in answer.out
    assert "3/3" in answer.out
    assert "inbound_events: completed, 3 rows deleted in" in answer.out
    assert '"level"' not in answer.out
    assert db.count("inbound_events") == 1


async def test_run_on_a_terminal_says_what_it_waits_for(db: RetentionDB) -> None:
    """Otherwise it would look as if it hung; another operator can cancel it."""
    with psycopg.connect(db.urls.owner_url) as other:
        other.execute("SELECT pg_current_xact_id()")
        impatient = {"TEST_LONG_TRANSACTION_S": "0.1"}
        terminal = Terminal(db, "retention", "run", "inbound_events", "--yes", environ=impatient)
        terminal.wait_for("inbound_events waits: a transaction of keeper_owner")
        terminal.wait_for("0/3 waits: long transaction")
        await db.retention().operator.cancel("inbound_events", by="ann")
        answer = terminal.end()
    assert "inbound_events: cancelled, 0 rows deleted (run 1): The run on inbound_events was" in answer.out
    assert answer.code == 1
    assert db.count("inbound_events") == 4


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        pytest.param("\n", 0, "Nothing was deleted.", id="enter"),
        pytest.param("\x04", 0, "Nothing was deleted.", id="end of input"),
        pytest.param("\x03", 130, "watchkeeper: interrupted", id="ctrl-c"),
    ],
)
async def test_any_answer_but_yes_means_no(db: RetentionDB, keys: str, code: int, said: str) -> None:
    """Nothing is deleted; only Ctrl-C is a failure."""
    terminal = Terminal(db, "retention", "run")
    terminal.wait_for("[y/N]")
    terminal.type(keys)
    answer = terminal.end()
    assert (answer.code, answer.out.endswith(f"{said}\n")) == (code, True)
    assert db.count("inbound_events") == 4


async def test_ctrl_c_during_a_run_closes_it(db: RetentionDB) -> None:
    """The run stops after its transaction, is audited, and prints how many rows it deleted."""
    db.fill("inbound_events", 40, 20_000)
    db.slow_down(0.2)
    terminal = Terminal(db, "retention", "run", "inbound_events", "--yes", "--allow-share", "1")
    terminal.wait_for("rows/s")
    terminal.type("\x03")
    answer = terminal.end()
    left = db.count("inbound_events")
    assert 1 < left < 20_001
    assert answer.code == 1
    assert f"inbound_events: stopped, {20_004 - left:,} rows deleted (run 1)" in answer.out
    assert [entry["deleted"] for entry in db.audit_payloads()] == [20_004 - left]
    assert "was stopped with its process: run it again, and it continues where it ended" in answer.out
    assert "scheduled" not in answer.out


async def test_tables_on_a_terminal(db: RetentionDB) -> None:
    """The lines of each command's tables fit into the terminal."""
    await db.retention().run_now()
    db.sql("ALTER TABLE chat_sessions RENAME TO moved")
    await db.retention().run_now()
    commands = ("retention plan", "retention status", "retention history", "audit list --limit 1")
    answers = [(command, Terminal(db, *command.split()).end()) for command in commands]
    check_golden("retention_terminal", *answers[:-1])
    audited = answers[-1][1].out
    assert "duration_ms=" in audited  # folded, and not cut
    assert "…" not in audited
    tables = [line for _, answer in answers for line in answer.out.splitlines() if line.startswith(" ")]
    assert max(map(len, tables)) <= 120


async def test_control_characters_are_escaped(db: RetentionDB) -> None:
    """Escape sequences and line breaks in an audit entry are shown as text on one line."""
    payload = json.dumps({"name": "\x1b[2J\x07\n\u202eevil", "deleted": 1})
    db.sql(
        "INSERT INTO audit_log (actor_type, actor_id, action, entity, entity_id, payload)"
        " VALUES ('user', %s, 'a', 'e', E'x\\x1b[31m', %s)",
        "[bold]u\u009b1m",
        payload,
    )
    terminal = Terminal(db, "audit", "list", keep_escapes=True)
    shown = terminal.end().out
    assert "user:[bold]u\\u009b1m" in shown
    assert "e:x\\u001b[31m" in shown
    assert "\\u001b[2J\\u0007\\u000a\\u202eevil" in shown
    piped = run_command(db, "audit", "list").out
    assert piped.count("\n") == 1
    assert not set(shown + piped) & set("\x07\x9b\u202e")
    assert "\x1b[2J" not in shown + piped


async def test_closed_pipe_does_not_stop_a_run(db: RetentionDB) -> None:
    """`retention run | head -0` runs to its end, without an error."""
    answer = run_command(db, "retention", "run", "--yes", read=False)
    assert (answer.code, answer.out) == (0, "")
    assert "Traceback" not in answer.err
    assert "Broken pipe" not in answer.err
    assert len(db.audit_payloads()) == 2


async def test_unreachable_database_is_one_line_of_error(db: RetentionDB) -> None:
    """The exit code is 1, and there is no traceback."""
    away = {"TEST_URL": "postgresql://keeper@127.0.0.1:1/x", "TEST_OWNER_URL": "postgresql://o@127.0.0.1:1/x"}
    answer = run_command(db, "retention", "status", environ=away)
    assert (answer.code, answer.out) == (1, "")
    assert "watchkeeper: No connection to the database could be made within 2 s" in answer.err
    assert "Traceback" not in answer.err


async def test_database_error_is_one_line_of_error(db: RetentionDB) -> None:
    """The exit code is 1, and there is no traceback."""
    db.sql("ALTER TABLE retention_runs RENAME started_at TO began_at")
    answer = run_command(db, "retention", "status")
    assert (answer.code, answer.out) == (1, "")
    assert "watchkeeper: Database error: column last.started_at does not exist" in answer.err
    assert "Traceback" not in answer.err


async def test_invalid_limit_is_a_usage_error(db: RetentionDB) -> None:
    """The message says which numbers are valid."""
    answer = run_command(db, "audit", "list", "--limit", "0")
    assert answer.code == 2
    assert "argument --limit: must be a number from 1 to 1000" in answer.err


async def test_plan_names_partitions_and_a_missing_index(db: RetentionDB) -> None:
    """It lists dropped partitions, kept ones with a reason, and the statement that creates the index."""
    db.sql("DROP TABLE inbound_events, chat_sessions")
    db.make_table("chat_sessions", "updated_at", indexed=False)
    db.fill("chat_sessions", 99, 1, "updated_at")
    db.sql(
        "CREATE TABLE inbound_events (id text, received_at timestamptz NOT NULL)"
        " PARTITION BY RANGE (received_at)"
    )
    for year, stop in ((2019, "'2020-01-01'"), (2020, "'2021-01-01'"), (2021, "MAXVALUE")):
        bounds = f"FOR VALUES FROM ('{year}-01-01') TO ({stop})"
        db.sql(f"CREATE TABLE events_{year} PARTITION OF inbound_events {bounds}")
        db.sql("INSERT INTO inbound_events VALUES ('a', make_date(%s, 5, 5))", year)
    db.sql("CREATE VIEW first_year AS TABLE events_2019")
    db.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON inbound_events TO keeper")
    db.sql("ANALYZE inbound_events, chat_sessions")
    commands = (
        "retention plan",
        "retention plan inbound_events --json",
        "retention run inbound_events --yes",
        "retention run inbound_events --yes --json",
        "audit list --entity inbound_events",
    )
    answers = [(command, run_command(db, *command.split())) for command in commands]
    check_golden("retention_partitions", *answers)

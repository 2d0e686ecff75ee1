"""What a run deleted comes back from the archive: all of it, once, and what cannot is told."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from support.archive import ARCHIVED, difference, file_of
from support.retention import EVENTS, RetentionDB
from support.terminal import Terminal, check_golden, run_command
from watchkeeper import Secret, Settings, Watchkeeper
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention import Location, Policy

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import PostgresServer
    from watchkeeper.retention import Retention


@pytest.fixture
def db(db: RetentionDB) -> RetentionDB:
    """The database with a hundred old rows and three young ones."""
    db.make_table()
    db.sql("ALTER TABLE inbound_events ADD source text DEFAULT 'crm'")
    db.fill("inbound_events", 40, 100)
    db.fill("inbound_events", 3, 3)
    db.sql("CREATE TABLE before AS TABLE inbound_events")
    return db


@pytest.fixture
async def pruned(db: RetentionDB, monkeypatch: pytest.MonkeyPatch) -> Retention:
    """Its retention, after a run that archived the old rows in several segments."""
    monkeypatch.setattr("watchkeeper.retention.run._archived_sweep.MOST_BYTES", 2000)
    retention = db.retention(ARCHIVED)
    (result,) = await retention.run_now()
    assert (result.error, result.deleted) == (None, 100)
    assert db.count("retention_archives") > 3
    return retention


async def test_a_run_comes_back_and_is_audited(db: RetentionDB, pruned: Retention) -> None:
    """The table is what it was; its begin and what it came to are audited, in the name of who wanted it."""
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.problems, restored.rows, restored.present, restored.earlier) == ((), 100, 0, 0)
    assert difference(db, "inbound_events", "before") == []
    segments = db.count("retention_archives WHERE restored_at IS NOT NULL")
    assert db.count("retention_archives") == segments
    (who, begun), (who_again, ended) = restoring_of(db)
    assert who == who_again == ("user", "ann", "inbound_events", "1")
    assert begun == {"status": "begun", "rows": 100, "segments": segments}
    assert ended.pop("begun") < db.sql("SELECT max(id) FROM audit_log")[0][0]
    assert ended == {
        "status": "completed",
        "restored": 100,
        "present": 0,
        "segments": segments,
        "problems": 0,
    }


def restoring_of(db: RetentionDB) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return who restored and what the entries say, the first first."""
    entries = db.sql(
        "SELECT actor_type, actor_id, entity, entity_id, payload FROM audit_log"
        " WHERE action = 'retention.restore' ORDER BY id"
    )
    return [(tuple(who), payload) for *who, payload in entries]


async def test_what_came_back_before_the_process_died_is_audited(db: RetentionDB, pruned: Retention) -> None:
    """With the first rows comes the entry that says so; the ledger has how far it came."""

    def die(_rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await pruned.operator.restore(1, restored_by="ann", on_rows=die)
    assert db.count("retention_archives WHERE restored_at IS NOT NULL") == 1
    assert [payload["status"] for _, payload in restoring_of(db)] == ["begun"]
    restored = await pruned.operator.restore(1, restored_by="bob")
    assert restored.rows + restored.earlier == 100
    assert [(who[1], payload["status"]) for who, payload in restoring_of(db)] == [
        ("ann", "begun"),
        ("bob", "begun"),
        ("bob", "completed"),
    ]


async def test_nothing_comes_back_that_cannot_be_audited(db: RetentionDB, pruned: Retention) -> None:
    """No entry, no rows; a sum that cannot be written is told, and the rows are back."""
    db.sql("REVOKE INSERT ON audit_log FROM keeper")
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.rows, len(restored.problems), db.count("inbound_events")) == (0, 1, 3)
    db.sql("GRANT INSERT ON audit_log TO keeper")

    def once(_rows: int) -> None:
        db.sql("REVOKE INSERT ON audit_log FROM keeper")

    restored = await pruned.operator.restore(1, restored_by="ann", on_rows=once)
    assert (restored.rows, db.count("inbound_events")) == (100, 103)
    (problem,) = restored.problems
    assert "What came back is not summed up in the audit log, where entry" in problem


async def test_the_history_says_what_was_archived_and_restored(db: RetentionDB, pruned: Retention) -> None:
    """In a sentence, and as JSON."""
    (run,) = await pruned.history()
    assert (run.archived, run.restored, run.attempt) == (100, 0, 1)
    told = run_command(db, "retention", "history")
    assert "completed, 100 rows deleted (100 archived) in" in told.out
    await pruned.operator.restore(1, restored_by="ann")
    assert "(100 archived, restored)" in run_command(db, "retention", "history").out
    (document,) = json.loads(run_command(db, "retention", "history", "--json").out)
    assert (document["archived"], document["restored"], document["partitions"]) == (100, 100, [])


async def test_restoring_twice_is_restoring_once(db: RetentionDB, pruned: Retention) -> None:
    """Also where the rows were deleted again meanwhile: that is another run, with an archive of its own."""
    await pruned.operator.restore(1, restored_by="ann")
    again = await pruned.operator.restore(1, restored_by="ann")
    assert (again.rows, again.present, again.earlier, again.problems) == (0, 0, 100, ())
    (second,) = await pruned.run_now()
    assert second.deleted == 100
    assert (await pruned.operator.restore(1, restored_by="ann")).rows == 0
    assert db.count("inbound_events") == 3
    assert (await pruned.operator.restore(2, restored_by="ann")).rows == 100


async def test_two_who_restore_at_once_restore_once(db: RetentionDB, pruned: Retention) -> None:
    """Each segment comes back by one of them, also into a table that has no key to tell."""
    db.sql("ALTER TABLE inbound_events DROP CONSTRAINT inbound_events_pkey")
    both = await asyncio.gather(*(pruned.operator.restore(1, restored_by=who) for who in ("ann", "bob")))
    assert sum(restored.rows for restored in both) == 100
    assert difference(db, "inbound_events", "before") == []


async def test_a_file_of_no_named_machine_is_told_in_words(db: RetentionDB, pruned: Retention) -> None:
    """Whatever archive wrote the place."""
    db.sql("UPDATE retention_archives SET place = 'file:///var/shop/inbound_events/9-0001.jsonl.gz'")
    (problem,) = (await pruned.operator.restore(1, restored_by="ann")).problems
    assert problem.startswith("The file /var/shop/inbound_events/9-0001.jsonl.gz of this machine is missing")


async def test_rows_that_are_there_already_stay_as_they_are(db: RetentionDB, pruned: Retention) -> None:
    """Their number is told."""
    db.sql("INSERT INTO inbound_events VALUES ('40-7', now(), 'new'), ('40-8', now(), 'new')")
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.rows, restored.present) == (98, 2)
    assert db.count("inbound_events WHERE source = 'new'") == 2


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("flip", r"^(\d+) rows are not put back, because their part of .*1-0001.jsonl.gz .*is damaged"),
        ("cut", r"^The file .*1-0001.jsonl.gz of .* ends before byte \d+: bring the whole file to"),
        ("remove", r"^The file .*1-0001.jsonl.gz of .* is missing: run this there, or bring the file here"),
    ],
)
async def test_what_is_damaged_or_missing_is_told_and_the_others_come_back(
    db: RetentionDB, pruned: Retention, damage: str, sentence: str
) -> None:
    """No row of a segment comes back whose bytes are not the ledger's; with the whole file, they all do."""
    *_, (place, start, length, deleted) = db.sql(
        "SELECT place, start, length, deleted FROM retention_archives ORDER BY id"
    )
    file, lost = file_of(place), deleted
    whole = file.read_bytes()
    if damage == "flip":
        middle = start + length // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif damage == "cut":
        file.write_bytes(whole[: start + length - 1])
    else:
        file.unlink()
        lost = 100
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert restored.rows == 100 - lost
    (problem,) = restored.problems
    assert re.search(sentence, problem)
    assert db.count("inbound_events") == 103 - lost
    file.write_bytes(whole)
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.rows, restored.earlier, restored.problems) == (lost, 100 - lost, ())
    assert difference(db, "inbound_events", "before") == []


async def test_a_file_of_another_machine_is_found_in_the_folder(db: RetentionDB, pruned: Retention) -> None:
    """It was written elsewhere, and brought to where this one has its own."""
    ((place,),) = db.sql("SELECT DISTINCT place FROM retention_archives")
    assert file_of(place).exists()
    db.sql("UPDATE retention_archives SET place = 'file://other/var/shop/inbound_events/1-0001.jsonl.gz'")
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.rows, restored.problems) == (100, ())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("ALTER TABLE inbound_events DROP source", "has no column source any more, which the archived rows"),
        (
            "REVOKE INSERT ON inbound_events FROM keeper",
            "The service lacks INSERT on inbound_events. As its owner, .*: GRANT INSERT ON inbound_events TO",
        ),
        ("ALTER TABLE inbound_events RENAME TO moved", "There is no table inbound_events any more"),
        (
            "ALTER TABLE inbound_events ALTER source TYPE varchar(2) USING 'x'",
            r"do not fit into inbound_events as it is now \(value too long for type character varying\(2\)",
        ),
        (
            "ALTER TABLE inbound_events ADD CONSTRAINT named CHECK (source <> 'crm') NOT VALID",
            'do not fit into inbound_events as it is now .*violates check constraint "named"',
        ),
    ],
)
async def test_a_table_that_takes_the_rows_no_more_is_told(
    db: RetentionDB, pruned: Retention, change: str, sentence: str
) -> None:
    """Nothing of the segment comes back, and nothing says that it did."""
    db.sql(change)
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert restored.rows == 0
    (problem,) = restored.problems
    assert re.search(sentence, problem)
    assert db.count("retention_archives WHERE restored_at IS NOT NULL") == 0
    assert db.count("audit_log WHERE action = 'retention.restore'") == 0


async def test_columns_that_were_added_get_their_defaults(db: RetentionDB, pruned: Retention) -> None:
    """And those that are generated by now follow from the others."""
    db.sql(
        "ALTER TABLE inbound_events ADD added int DEFAULT 7, DROP source,"
        " ADD source text GENERATED ALWAYS AS (upper(id)) STORED"
    )
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.problems, restored.rows) == ((), 100)
    assert db.count("inbound_events WHERE added = 7 AND source = upper(id)") == 103


async def test_nothing_is_restored_into_a_run(db: RetentionDB, pruned: Retention) -> None:
    """A run that is going on would delete what comes back."""
    db.sql(
        "INSERT INTO retention_runs (table_name, trigger, due_at, attempt, lease_until, horizon)"
        " VALUES ('inbound_events', 'manual', now(), 1, now() + interval '1 minute', now())"
    )
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert restored.problems == (
        "inbound_events is being pruned (run 2): restore when that has ended, or it takes what comes back.",
    )
    assert db.count("inbound_events") == 3
    with pytest.raises(ConfigurationError, match="Run 2 on inbound_events is going on"):
        await pruned.operator.restore(2, restored_by="ann")


async def test_what_was_not_deleted_is_not_restored(db: RetentionDB) -> None:
    """A segment whose delete did not commit is in the archive, and its rows are in the table."""
    db.sql("ALTER TABLE inbound_events DROP CONSTRAINT inbound_events_pkey")
    db.sql("CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$")
    db.sql("CREATE TRIGGER fail BEFORE DELETE ON inbound_events EXECUTE FUNCTION fail()")
    retention = db.retention(ARCHIVED)
    (result,) = await retention.run_now()
    assert (result.status, result.deleted) == ("failed", 0)
    assert db.sql("SELECT rows, deleted FROM retention_archives") == [(100, None)]
    with pytest.raises(ConfigurationError, match="Nothing of run 1 on inbound_events is in the archive"):
        await retention.operator.restore(1, restored_by="ann")
    assert "archived" not in db.audit_payloads()[0]


async def test_a_run_that_is_not_there_is_told(db: RetentionDB) -> None:
    """Or one that archived nothing, or nobody who wants it."""
    retention = db.retention(EVENTS)
    await retention.run_now()
    with pytest.raises(ConfigurationError, match="There is no run 7: see `retention history`"):
        await retention.operator.restore(7, restored_by="ann")
    with pytest.raises(ConfigurationError, match="its policy does not archive"):
        await retention.operator.restore(1, restored_by="ann")
    with pytest.raises(ConfigurationError, match="Say who restores"):
        await retention.operator.restore(1, restored_by=" ")


async def test_a_table_of_another_schema_comes_back_without_its_policy(db: RetentionDB) -> None:
    """The ledger knows the table, also when its policy was removed after a mishap."""
    db.sql('CREATE SCHEMA "sales %"')
    db.sql('CREATE TABLE "sales %"."Old Carts" (id int PRIMARY KEY, "made at" timestamptz)')
    db.sql('GRANT USAGE ON SCHEMA "sales %" TO keeper')
    db.sql('GRANT SELECT, INSERT, UPDATE, DELETE ON "sales %"."Old Carts" TO keeper')
    db.sql("""INSERT INTO "sales %"."Old Carts" SELECT g, '2020-01-01' FROM generate_series(1, 5) g""")
    policy = Policy(
        table="Old Carts", schema="sales %", age_column="made at", keep=timedelta(days=30), archive=True
    )
    (result,) = await db.retention(policy).run_now()
    assert (result.error, result.deleted) == (None, 5)
    assert [path.name for path in (db.folder / "archive").iterdir()] == ["sales%20%25.Old%20Carts"]
    db.reset_metrics()
    restored = await db.retention(EVENTS).operator.restore(1, restored_by="ann")
    assert (restored.rows, db.count('"sales %"."Old Carts"')) == (5, 5)


async def test_the_command(db: RetentionDB, pruned: Retention) -> None:
    """It tells what came back, what did not, and how to keep it; twice is once."""
    db.sql("INSERT INTO inbound_events VALUES ('40-7', now(), 'new')")
    commands = (
        "retention restore 1",
        "retention restore 9 --yes",
        "retention restore 1 --by ann --yes",
        "retention restore 1 --by ann --yes",
        "retention restore 1 --yes --json",
    )
    answers = [(command, run_command(db, *command.split())) for command in commands]
    check_golden("retention_restore", *answers)
    assert db.count("inbound_events") == 103
    assert json.loads(answers[-1][1].out)["earlier"] == 100
    advice = answers[2][1].out.splitlines()[1].partition("To keep them: ")[2]
    assert run_command(db, *shlex.split(advice), "--owner", "ann").code == 0
    (result,) = await pruned.run_now()
    assert (result.error, result.deleted, db.count("inbound_events")) == (None, 0, 103)


@pytest.mark.usefixtures("pruned")
@pytest.mark.parametrize("answer", ["y", "n"])
async def test_the_command_asks_on_a_terminal(db: RetentionDB, answer: str) -> None:
    """With the number of rows, and shows a bar while they come back."""
    terminal = Terminal(db, "retention", "restore", "1")
    terminal.wait_for("Put 100 rows of run 1 back into inbound_events? [y/N]")
    assert db.count("inbound_events") == 3
    terminal.type(f"{answer}\n")
    told = terminal.end()
    assert told.code == 0
    assert ("100/100" in told.out) == ("100 rows of run 1 are back" in told.out) == (answer == "y")
    assert ("Nothing was put back." in told.out) == (answer == "n")
    assert db.count("inbound_events") == (103 if answer == "y" else 3)


async def test_a_database_that_goes_away_leaves_what_is_back(
    private_db: RetentionDB, postgres_private: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came back before is told, and the same command goes on when there is a database again."""
    monkeypatch.setattr("watchkeeper.retention.run._archived_sweep.MOST_BYTES", 2000)
    private_db.make_table()
    private_db.fill("inbound_events", 40, 300)
    retention = private_db.retention(ARCHIVED)
    await retention.run_now()
    back: list[int] = []

    def stop(rows: int) -> None:
        back.append(rows)
        if len(back) == 2:
            postgres_private.stop()

    restored = await retention.operator.restore(1, restored_by="ann", on_rows=stop)
    assert restored.rows == sum(back) < 300
    problem, unsummed = restored.problems
    assert "database" in problem
    assert "not summed up in the audit log, where entry" in unsummed
    postgres_private.start()
    private_db.close()
    private_db.reconnect()
    restored = await retention.operator.restore(1, restored_by="ann")
    assert (restored.rows, restored.earlier, restored.problems) == (300 - sum(back), sum(back), ())
    assert private_db.count("inbound_events") == 300


class Shelf:
    """An archive that is no folder."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    async def write(self, table: str, run: int, data: bytes) -> Location:
        """Keep a segment."""
        self.parts.append(data)
        return Location(place=f"shelf://{table}/{run}/{len(self.parts)}", start=0, length=len(data))

    async def read(self, location: Location) -> bytes:
        """Return a segment."""
        return self.parts[int(location.place.rpartition("/")[2]) - 1]

    def __len__(self) -> int:
        """Say how many there are: none at first, and still it is the archive."""
        return len(self.parts)


async def test_a_service_may_bring_an_archive_of_its_own(db: RetentionDB, tmp_path: Path) -> None:
    """What the keeper is given takes the rows, and gives them back; no folder is made."""
    shelf = Shelf()
    settings = Settings(
        service="test",
        state_dir=tmp_path / "state",
        database_url=Secret(db.urls.url),
        database_owner_url=Secret(db.urls.owner_url),
    )
    keeper = Watchkeeper("test", settings=settings, retention=[ARCHIVED], archive=shelf)
    async with keeper.running():
        (result,) = await keeper.retention.run_now()
        assert (result.error, result.deleted) == (None, 100)
        kept, shelf.parts = shelf.parts, []
        emptied = await keeper.retention.operator.restore(1, restored_by="ann")
        shelf.parts = kept
        restored = await keeper.retention.operator.restore(1, restored_by="ann")
    assert "cannot be read: IndexError: list index out of range" in emptied.problems[0]
    assert emptied.rows == 0
    assert (restored.problems, restored.rows) == ((), 100)
    assert difference(db, "inbound_events", "before") == []
    assert len(shelf) > 0
    assert not settings.archive_folder.exists()

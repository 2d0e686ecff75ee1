"""Restore: a run's rows come back from the archive completely and once; the rest is reported."""

import asyncio
import json
import re
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.archive import ARCHIVED, difference, file_of
from support.postgres import PostgresServer
from support.retention import EVENTS, OPEN_RUN, RetentionDB
from support.terminal import Terminal, check_golden, run_command
from watchkeeper import Secret, Settings, Watchkeeper
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention import Location, Policy, Retention


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
async def pruned(db: RetentionDB) -> Retention:
    """Its retention, after a run that archived the old rows in several segments."""
    db.tune(segment_bytes=2000)
    retention = db.retention(ARCHIVED)
    (result,) = await retention.run_now()
    assert (result.error, result.deleted) == (None, 100)
    assert db.count("retention_archives") > 3
    return retention


async def test_restore_brings_a_run_back_and_is_audited(db: RetentionDB, pruned: Retention) -> None:
    """The table is as before; start and result are audited in the operator's name."""
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.problems, restored.rows, restored.present, restored.earlier) == ((), 100, 0, 0)
    assert difference(db, "inbound_events", "before") == []
    segments = db.count("retention_archives WHERE restored_at IS NOT NULL")
    assert db.count("retention_archives") == segments
    (who, begun), (who_again, ended) = restore_entries(db)
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


def restore_entries(db: RetentionDB) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return who restored and what the audit entries say, oldest first."""
    entries = db.sql(
        "SELECT actor_type, actor_id, entity, entity_id, payload FROM audit_log"
        " WHERE action = 'retention.restore' ORDER BY id"
    )
    return [(tuple(who), payload) for *who, payload in entries]


async def test_partial_restore_of_a_dead_process_is_audited(db: RetentionDB, pruned: Retention) -> None:
    """The entry is written with the first rows, and the ledger has the progress."""

    def die(_rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await pruned.operator.restore(1, restored_by="ann", on_rows=die)
    assert db.count("retention_archives WHERE restored_at IS NOT NULL") == 1
    assert [payload["status"] for _, payload in restore_entries(db)] == ["begun"]
    restored = await pruned.operator.restore(1, restored_by="bob")
    assert restored.rows + restored.earlier == 100
    assert [(who[1], payload["status"]) for who, payload in restore_entries(db)] == [
        ("ann", "begun"),
        ("bob", "begun"),
        ("bob", "completed"),
    ]


async def test_restore_that_cannot_be_audited_restores_nothing(db: RetentionDB, pruned: Retention) -> None:
    """If only the final entry fails, that is reported and the rows are back."""
    db.sql("REVOKE INSERT ON audit_log FROM keeper")
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.rows, len(restored.problems), db.count("inbound_events")) == (0, 1, 3)
    db.sql("GRANT INSERT ON audit_log TO keeper")

    def once(_rows: int) -> None:
        db.sql("REVOKE INSERT ON audit_log FROM keeper")

    restored = await pruned.operator.restore(1, restored_by="ann", on_rows=once)
    assert (restored.rows, db.count("inbound_events")) == (100, 103)
    (problem,) = restored.problems
    assert "The totals could not be added to the audit log, where entry" in problem


async def test_history_shows_what_was_archived_and_restored(db: RetentionDB, pruned: Retention) -> None:
    """In a sentence, and as JSON."""
    (run,) = await pruned.history()
    assert (run.archived, run.restored, run.attempt) == (100, 0, 1)
    output = run_command(db, "retention", "history")
    assert "completed, 100 rows deleted (100 archived) in" in output.out
    await pruned.operator.restore(1, restored_by="ann")
    assert "(100 archived, restored)" in run_command(db, "retention", "history").out
    (document,) = json.loads(run_command(db, "retention", "history", "--json").out)
    assert (document["archived"], document["restored"], document["partitions"]) == (100, 100, [])


async def test_restoring_twice_restores_once(db: RetentionDB, pruned: Retention) -> None:
    """Rows deleted again since belong to another run with its own archive."""
    await pruned.operator.restore(1, restored_by="ann")
    again = await pruned.operator.restore(1, restored_by="ann")
    assert (again.rows, again.present, again.earlier, again.problems) == (0, 0, 100, ())
    (second,) = await pruned.run_now()
    assert second.deleted == 100
    assert (await pruned.operator.restore(1, restored_by="ann")).rows == 0
    assert db.count("inbound_events") == 3
    assert (await pruned.operator.restore(2, restored_by="ann")).rows == 100


async def test_concurrent_restores_restore_once(db: RetentionDB, pruned: Retention) -> None:
    """Each segment is restored by one of them, even into a table without a key."""
    db.sql("ALTER TABLE inbound_events DROP CONSTRAINT inbound_events_pkey")
    both = await asyncio.gather(*(pruned.operator.restore(1, restored_by=who) for who in ("ann", "bob")))
    assert sum(restored.rows for restored in both) == 100
    assert difference(db, "inbound_events", "before") == []


async def test_location_without_a_host_is_described(db: RetentionDB, pruned: Retention) -> None:
    """Whichever archive wrote it."""
    db.sql("UPDATE retention_archives SET place = 'file:///var/shop/inbound_events/9-0001.jsonl.gz'")
    (problem,) = (await pruned.operator.restore(1, restored_by="ann")).problems
    assert problem.startswith("The file /var/shop/inbound_events/9-0001.jsonl.gz of this machine is missing")


async def test_existing_rows_are_left_as_they_are(db: RetentionDB, pruned: Retention) -> None:
    """Their number is reported."""
    db.sql("INSERT INTO inbound_events VALUES ('40-7', now(), 'new'), ('40-8', now(), 'new')")
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.rows, restored.present) == (98, 2)
    assert db.count("inbound_events WHERE source = 'new'") == 2


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("flip", r"^(\d+) rows are not restored, because their part of .*1-0001.jsonl.gz .*is damaged"),
        ("cut", r"^The file .*1-0001.jsonl.gz of .* ends before byte \d+: copy the complete file to"),
        ("remove", r"^The file .*1-0001.jsonl.gz of .* is missing: run this command there, or copy the file"),
    ],
)
async def test_damaged_segments_are_reported_and_the_others_restored(
    db: RetentionDB, pruned: Retention, damage: str, sentence: str
) -> None:
    """A segment whose checksum differs restores no row; with the whole file all do."""
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


async def test_file_moved_from_another_machine_is_found_in_the_folder(
    db: RetentionDB, pruned: Retention
) -> None:
    """It was brought to where this machine has its archive."""
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
        ("ALTER TABLE inbound_events RENAME TO moved", "The table inbound_events does not exist any more"),
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
async def test_table_that_no_longer_fits_is_reported(
    db: RetentionDB, pruned: Retention, change: str, sentence: str
) -> None:
    """Nothing of the segment is restored or recorded as restored."""
    db.sql(change)
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert restored.rows == 0
    (problem,) = restored.problems
    assert re.search(sentence, problem)
    assert db.count("retention_archives WHERE restored_at IS NOT NULL") == 0
    assert db.count("audit_log WHERE action = 'retention.restore'") == 0


async def test_added_columns_get_their_defaults(db: RetentionDB, pruned: Retention) -> None:
    """Generated columns are computed."""
    db.sql(
        "ALTER TABLE inbound_events ADD added int DEFAULT 7, DROP source,"
        " ADD source text GENERATED ALWAYS AS (upper(id)) STORED"
    )
    restored = await pruned.operator.restore(1, restored_by="ann")
    assert (restored.problems, restored.rows) == ((), 100)
    assert db.count("inbound_events WHERE added = 7 AND source = upper(id)") == 103


async def test_restore_is_refused_during_a_run(db: RetentionDB, pruned: Retention) -> None:
    """The run would delete the rows again."""
    db.sql(OPEN_RUN)
    restored = await pruned.operator.restore(1, restored_by="ann")
    (problem,) = restored.problems
    assert problem.startswith("inbound_events is being pruned (run 2), which would delete the restored rows:")
    assert db.count("inbound_events") == 3
    with pytest.raises(ConfigurationError, match="Run 2 on inbound_events has not ended"):
        await pruned.operator.restore(2, restored_by="ann")


async def test_segment_whose_delete_was_rolled_back_is_not_restored(db: RetentionDB) -> None:
    """Its rows are still in the table."""
    db.sql("ALTER TABLE inbound_events DROP CONSTRAINT inbound_events_pkey")
    db.on_delete("RAISE 'no'")
    retention = db.retention(ARCHIVED)
    (result,) = await retention.run_now()
    assert (result.status, result.deleted) == ("failed", 0)
    assert db.sql("SELECT rows, deleted FROM retention_archives") == [(100, None)]
    with pytest.raises(ConfigurationError, match="Nothing of run 1 on inbound_events is in the archive"):
        await retention.operator.restore(1, restored_by="ann")
    assert "archived" not in db.audit_payloads()[0]


async def test_restore_of_an_unknown_run_is_refused(db: RetentionDB) -> None:
    """As is one that archived nothing, and one without an operator's name."""
    retention = db.retention(EVENTS)
    await retention.run_now()
    with pytest.raises(ConfigurationError, match="There is no run 7: see `retention history`"):
        await retention.operator.restore(7, restored_by="ann")
    with pytest.raises(ConfigurationError, match="its policy does not archive"):
        await retention.operator.restore(1, restored_by="ann")
    with pytest.raises(ConfigurationError, match="Say who restores"):
        await retention.operator.restore(1, restored_by=" ")


async def test_restore_works_without_a_policy(db: RetentionDB) -> None:
    """The ledger knows the table, here of another schema."""
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


async def test_restore_command(db: RetentionDB, pruned: Retention) -> None:
    """It reports what was restored, what was not, and how to keep it; twice restores once."""
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
async def test_restore_command_asks_on_a_terminal(db: RetentionDB, answer: str) -> None:
    """With the number of rows, and shows a progress bar."""
    terminal = Terminal(db, "retention", "restore", "1")
    terminal.wait_for("Restore 100 rows of run 1 to inbound_events? [y/N]")
    assert db.count("inbound_events") == 3
    terminal.type(f"{answer}\n")
    output = terminal.end()
    assert output.code == 0
    assert ("100/100" in output.out) == ("restored 100 rows of run 1" in output.out) == (answer == "y")
    assert ("Nothing was restored." in output.out) == (answer == "n")
    assert db.count("inbound_events") == (103 if answer == "y" else 3)


async def test_restore_interrupted_by_an_outage_continues_later(
    private_db: RetentionDB, postgres_private: PostgresServer
) -> None:
    """What was restored is reported, and the same command continues."""
    private_db.tune(segment_bytes=2000)
    private_db.make_table(old=300)
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
    assert "could not be added to the audit log, where entry" in unsummed
    postgres_private.start()
    private_db.close()
    private_db.reconnect()
    restored = await retention.operator.restore(1, restored_by="ann")
    assert (restored.rows, restored.earlier, restored.problems) == (300 - sum(back), sum(back), ())
    assert private_db.count("inbound_events") == 300


class MemoryArchive:
    """An archive in memory."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    async def write(self, table: str, run: int, data: bytes) -> Location:
        """Store a segment."""
        self.parts.append(data)
        return Location(place=f"shelf://{table}/{run}/{len(self.parts)}", start=0, length=len(data))

    async def read(self, location: Location) -> bytes:
        """Return a segment."""
        return self.parts[int(location.place.rpartition("/")[2]) - 1]

    def __len__(self) -> int:
        """Return how many segments there are; an empty archive is falsy, and must still be used."""
        return len(self.parts)


async def test_custom_archive_is_used(db: RetentionDB, tmp_path: Path) -> None:
    """It takes and returns the rows, and no folder is created."""
    shelf = MemoryArchive()
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

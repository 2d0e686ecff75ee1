"""The database commands: status, migrations, backup and restore."""

import asyncio
import os
import shutil
from pathlib import Path

import psycopg
import pytest

from support.postgres import SERVICE, PostgresServer
from support.retention import RetentionDB, open_db
from support.terminal import Terminal, check_golden, run_command


@pytest.fixture
def db(db: RetentionDB) -> RetentionDB:
    """The database with the contract's two tables."""
    db.make_contract_tables()
    return db


@pytest.fixture
def any_db(any_db: RetentionDB) -> RetentionDB:
    """The same, on each supported server."""
    any_db.make_contract_tables()
    return any_db


@pytest.fixture
def programs(postgres: PostgresServer) -> dict[str, str]:
    """A PATH with the newest server's programs."""
    return {"PATH": f"{postgres._bin}:{os.environ['PATH']}"}


def fake_program(folder: Path, name: str, script: str) -> dict[str, str]:
    """Create a program, and return a PATH that finds it first."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def backups(folder: Path) -> list[str]:
    """Return the names of the backups in a folder."""
    return [file.name for file in folder.glob("backup*")]


async def test_restore_replaces_the_whole_database(any_db: RetentionDB, programs: dict[str, str]) -> None:
    """Deleted rows are back, later objects are gone, and privileges, triggers and audit log are as before."""
    db, file = any_db, any_db.folder / "backup"
    await db.retention().run_now(["chat_sessions"])
    dumped = run_command(db, "db", "dump", str(file), environ=programs)
    assert (dumped.code, dumped.err.count("Traceback")) == (0, 0)
    assert file.stat().st_mode & 0o777 == 0o600
    assert dumped.out.startswith(f"{file}: ")
    db.sql("DELETE FROM inbound_events")
    for later in (
        "TABLE later (id int REFERENCES later_kind) PARTITION BY HASH (id)",
        "TABLE later_part PARTITION OF later FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "MATERIALIZED VIEW later_seen AS SELECT * FROM later",
        "TYPE later_color AS ENUM ('red')",
        "DOMAIN later_name AS text",
        "TYPE later_pair AS (a int, b later_color)",
        "SEQUENCE later_numbers",
        "FUNCTION later_sum(int, int) RETURNS int LANGUAGE sql AS 'SELECT $1 + $2'",
        "SCHEMA later_schema CREATE TABLE other (id int)",
    ):
        if later.startswith("TABLE later ("):
            db.sql("CREATE TABLE later_kind (id int PRIMARY KEY)")
        db.sql(f"CREATE {later}")
    db.close()
    await db.database.close()
    restored = run_command(db, "db", "restore", str(file), "--yes", environ=programs)
    assert restored.code == 0, restored.err
    db.reconnect()
    assert db.count("inbound_events") == 4
    assert db.sql("SELECT relname FROM pg_class WHERE relname LIKE 'later%'") == []
    assert db.count("pg_type WHERE typname LIKE '%later%'") == 0
    assert db.count("pg_proc WHERE proname LIKE 'later%'") == 0
    assert db.count("pg_namespace WHERE nspname LIKE 'later%'") == 0
    last = db.sql("SELECT actor_type, action, entity FROM audit_log ORDER BY id DESC LIMIT 2")
    assert last == [
        ("user", "database.restore", db.urls.name),
        ("system", "retention.prune", "chat_sessions"),
    ]
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        db.sql("DELETE FROM audit_log")
    await db.database.open()
    db.sql(f"GRANT SELECT, UPDATE, DELETE ON inbound_events TO {SERVICE}")
    assert [result.deleted for result in await db.retention().run_now(["inbound_events"])] == [3]


async def test_restore_replaces_a_database_that_is_newer_than_the_code(
    db: RetentionDB, programs: dict[str, str]
) -> None:
    """The error about such a database recommends it."""
    file = db.folder / "backup"
    assert run_command(db, "db", "dump", str(file), environ=programs).code == 0
    db.sql("INSERT INTO watchkeeper_migrations VALUES ('watchkeeper', 999, '0999_later.sql', 'x')")
    refused = run_command(db, "retention", "plan")
    assert refused.code == 1
    assert "The database is newer than this code" in refused.err
    restored = run_command(db, "db", "restore", str(file), "--yes", environ=programs)
    assert restored.code == 0, restored.err
    assert run_command(db, "retention", "status").code == 0


async def test_restore_that_fails_changes_nothing(db: RetentionDB, programs: dict[str, str]) -> None:
    """A file that is not a backup, or a truncated one, is one line of error."""
    file = db.folder / "backup"
    assert run_command(db, "db", "dump", str(file), environ=programs).code == 0
    whole = file.read_bytes()
    for content in (b"no backup", whole[:-200]):
        file.write_bytes(content)
        answer = run_command(db, "db", "restore", str(file), "--yes", environ=programs)
        assert answer.code == 1
        assert "pg_restore" in answer.err.splitlines()[-1]
        assert "Traceback" not in answer.err
        assert (db.count("inbound_events"), len(db.audit_payloads())) == (4, 0)


async def test_restore_fails_while_the_service_holds_a_lock(
    db: RetentionDB, programs: dict[str, str]
) -> None:
    """It gives up after five seconds, and reports the lock."""
    file = db.folder / "backup"
    assert run_command(db, "db", "dump", str(file), environ=programs).code == 0
    async with db.database.transaction() as conn:
        await conn.execute("SELECT FROM inbound_events")
        answer = run_command(db, "db", "restore", str(file), "--yes", environ=programs)
    assert answer.code == 1
    assert "Nothing was changed, because psql failed" in answer.err
    assert "lock timeout" in answer.err
    assert db.count("inbound_events") == 4


async def test_restore_on_a_terminal_asks_first(db: RetentionDB, programs: dict[str, str]) -> None:
    """The answer no changes nothing."""
    path = programs
    file = db.folder / "backup"
    assert run_command(db, "db", "dump", str(file), environ=path).code == 0
    db.sql("DELETE FROM inbound_events")
    terminal = Terminal(db, "db", "restore", str(file), environ=path)
    terminal.wait_for(f"Replace everything in the database {db.urls.name} by {file}? [y/N]")
    terminal.type("n\n")
    answer = terminal.end()
    assert (answer.code, answer.out.endswith("Nothing was changed.\n")) == (0, True)
    assert db.count("inbound_events") == 0


async def test_status_and_migrate(
    db: RetentionDB, postgres: PostgresServer, programs: dict[str, str]
) -> None:
    """Status shows the database and pending migrations; migrate and restore print those that they applied."""
    await db.database.close()
    db.close()
    urls = postgres.create_database()
    file = db.folder / "empty"
    async with open_db(urls, db.folder) as empty:
        assert run_command(empty, "db", "dump", str(file), environ=programs).code == 0
        commands = ("db status", "db migrate", "db migrate", "db status", "db status --json")
        answers = [(command, run_command(empty, *command.split())) for command in commands]
        for _, answer in answers:
            assert "Traceback" not in answer.err
        check_golden("db", *answers)
        weak = {"TEST_URL": empty.urls.owner_url}
        warned = run_command(empty, "db", "status", environ=weak)
        assert "warning: The service connects as keeper_owner, which owns the tables" in warned.out
        restored = run_command(empty, "db", "restore", str(file), "--yes", environ=programs)
        assert restored.out.endswith("applied watchkeeper/0004_retention_control.sql\n"), restored.err
    postgres.drop_database(urls.name)


async def test_dump_does_not_overwrite_a_file(db: RetentionDB, tmp_path: Path) -> None:
    """An existing file or a missing folder is one line of error."""
    path = fake_program(tmp_path / "bin", "pg_dump", "echo 'pg_dump (PostgreSQL) 99.1'")
    (tmp_path / "old").write_text("precious")
    for file, sentence in (
        ("old", "old exists already: name a new file."),
        ("no/new", "no/new cannot be written: No such file or directory."),
    ):
        answer = run_command(db, "db", "dump", str(tmp_path / file), environ=path)
        assert (answer.code, answer.out) == (2, "")
        assert sentence in answer.err
    assert (tmp_path / "old").read_text() == "precious"


async def test_dump_that_fails_leaves_no_file(db: RetentionDB, tmp_path: Path) -> None:
    """The message ends with what the program wrote to stderr."""
    script = (
        '[ "$1" = --version ] && echo "pg_dump (PostgreSQL) 99.1" && exit; echo "no space left" >&2; exit 3'
    )
    path = fake_program(tmp_path / "bin", "pg_dump", script)
    answer = run_command(db, "db", "dump", str(tmp_path / "backup"), environ=path)
    assert answer.code == 1
    assert "watchkeeper: pg_dump failed (exit code 3): no space left" in answer.err
    assert backups(tmp_path) == []


async def test_interrupted_dump_leaves_no_file(db: RetentionDB, tmp_path: Path) -> None:
    """Ctrl-C ends the program too."""
    script = '[ "$1" = --version ] && echo "pg_dump (PostgreSQL) 99.1" && exit; exec sleep 60'
    path = fake_program(tmp_path / "bin", "pg_dump", script)
    terminal = Terminal(db, "db", "dump", str(tmp_path / "backup"), environ=path)
    async with asyncio.timeout(30):
        while not backups(tmp_path):  # noqa: ASYNC110 - another process creates it
            await asyncio.sleep(0.05)
    terminal.type("\x03")
    answer = terminal.end()
    assert (answer.code, answer.out.endswith("watchkeeper: interrupted\n")) == (130, True)
    assert backups(tmp_path) == []


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (
            "pg_dump (PostgreSQL) 9.6.24",
            "has version 9, and the server has version 18: install PostgreSQL's client",
        ),
        ("pg_dump of another vendor", "has an unknown version, and the server has version 18"),
    ],
)
async def test_programs_older_than_the_server_are_refused(
    db: RetentionDB, tmp_path: Path, version: str, sentence: str
) -> None:
    """The message says what to install."""
    path = fake_program(tmp_path / "bin", "pg_dump", f"echo '{version}'")
    answer = run_command(db, "db", "dump", str(tmp_path / "backup"), environ=path)
    assert answer.code == 1
    assert sentence in answer.err
    assert "postgresql-client-18" in answer.err


async def test_missing_program_is_reported(db: RetentionDB, tmp_path: Path) -> None:
    """The message says what to install; a missing backup is reported first."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "backup").write_text("x")
    path = {"PATH": str(tmp_path / "empty")}
    answer = run_command(db, "db", "restore", str(tmp_path / "backup"), "--yes", environ=path)
    assert answer.code == 1
    assert "There is no pg_restore on the PATH: install PostgreSQL's client programs" in answer.err
    answer = run_command(db, "db", "restore", str(tmp_path / "none"), "--yes", environ=path)
    assert (answer.code, f"There is no file {tmp_path / 'none'}." in answer.err) == (2, True)
    answer = run_command(db, "db", "restore", str(tmp_path / "backup"), environ=path)
    assert (answer.code, "add --yes to replace the database" in answer.err) == (2, True)


async def test_programs_get_the_password_by_their_environment(db: RetentionDB, tmp_path: Path) -> None:
    """It is not on the command line, and the operator's own PG variables are not inherited."""
    seen = tmp_path / "seen"
    script = (
        '[ "$1" = --version ] && echo "pg_dump (PostgreSQL) 99.1" && exit;'
        f' {{ echo "$0 $*"; env; }} > {seen}; for last; do :; done; echo x > "$last"'
    )
    environ = fake_program(tmp_path / "bin", "pg_dump", script)
    url = db.urls.owner_url.replace("://keeper_owner@", "://keeper_owner:s3cret%20x@") + "&sslmode=disable"
    answer = run_command(
        db, "db", "dump", str(tmp_path / "b"), environ={**environ, "TEST_OWNER_URL": url, "PGAPPNAME": "mine"}
    )
    assert answer.code == 0, answer.err
    command, *variables = seen.read_text().splitlines()
    assert "s3cret" not in command
    assert {"PGPASSWORD=s3cret x", "PGUSER=keeper_owner", f"PGDATABASE={db.urls.name}"} <= set(variables)
    assert "PGSSLMODE=disable" in variables
    assert not [line for line in variables if line.startswith("PGAPPNAME")]
    assert "s3cret" not in answer.out + answer.err


async def test_embedded_server_is_backed_up_by_its_own_programs(db: RetentionDB) -> None:
    """Dump and restore work with nothing on the PATH."""
    state = Path("/dev/shm") / f"wk-cli-{os.getpid()}"  # noqa: S108 - every account can look into it
    state.mkdir(mode=0o711)
    environ = {"TEST_URL": "", "TEST_STATE": str(state), "PATH": str(state)}
    try:
        file = db.folder / "backup"
        assert run_command(db, "db", "migrate", environ=environ).code == 0
        dumped = run_command(db, "db", "dump", str(file), environ=environ)
        assert dumped.code == 0, dumped.err
        restored = run_command(db, "db", "restore", str(file), "--yes", environ=environ)
        assert restored.out == f"test: restored from {file}\n", restored.err
        entries = run_command(db, "audit", "list", environ=environ)
        assert "database.restore test" in entries.out
    finally:
        shutil.rmtree(state)

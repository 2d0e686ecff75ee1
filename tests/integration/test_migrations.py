"""Migrations on a real server: atomic, one at a time, and beside other sessions."""

import asyncio
import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import DiagnosticField, ExecStatus

from support.postgres import DatabaseUrls, PostgresServer
from watchkeeper.database import Database, MigrationSource, Queries
from watchkeeper.database._migrations import LIBRARY_MIGRATIONS
from watchkeeper.database._migrator import MigrationTimeouts
from watchkeeper.exceptions import DatabaseUnavailableError, MigrationError
from watchkeeper.retention._queries import QUERIES

QUICK = MigrationTimeouts(
    turn=timedelta(milliseconds=300), lock=timedelta(milliseconds=100), attempts=3, pause=timedelta(0)
)


def _database(urls: DatabaseUrls) -> Database:
    return Database(urls.url, owner_url=urls.owner_url)


def _source(folder: Path, *texts: str, grants: str | None = None) -> MigrationSource:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts, start=1):
        (folder / f"{number:04}_step.sql").write_text(text)
    if grants is not None:
        (folder / "grants.sql").write_text(grants)
    return MigrationSource(name="app", folder=folder)


def _rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(query.encode()).fetchall()


async def test_migrating_makes_the_schema_that_the_code_expects(empty_urls: DatabaseUrls) -> None:
    """On each supported server the first run creates everything, and the second applies nothing."""
    database = _database(empty_urls)
    applied = await database.migrate(LIBRARY_MIGRATIONS)
    assert applied == [str(migration) for migration in LIBRARY_MIGRATIONS.read()]
    assert await database.migrate(LIBRARY_MIGRATIONS) == []
    columns = _rows(
        empty_urls.url,
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns"
        " WHERE table_name = 'audit_log' ORDER BY ordinal_position",
    )
    assert columns == [
        ("id", "bigint", "NO"),
        ("actor_type", "text", "NO"),
        ("actor_id", "text", "NO"),
        ("action", "text", "NO"),
        ("entity", "text", "NO"),
        ("entity_id", "text", "YES"),
        ("payload", "jsonb", "NO"),
        ("created_at", "timestamp with time zone", "NO"),
    ]


async def test_the_record_says_what_was_applied(empty_urls: DatabaseUrls, tmp_path: Path) -> None:
    """There is one row per migration of each source, with its checksum."""
    source = _source(tmp_path, "CREATE TABLE a (id integer)", "CREATE TABLE b (id integer)")
    await _database(empty_urls).migrate(LIBRARY_MIGRATIONS, source)
    recorded = _rows(
        empty_urls.url, "SELECT source, number, name, checksum FROM watchkeeper_migrations ORDER BY 1, 2"
    )
    expected = [*source.read(), *LIBRARY_MIGRATIONS.read()]
    assert recorded == [(m.source, m.number, m.name, m.checksum) for m in expected]


async def test_a_failing_migration_is_rolled_back(empty_urls: DatabaseUrls, tmp_path: Path) -> None:
    """Earlier migrations stay applied, and the error names file, line and reason."""
    source = _source(
        tmp_path,
        "CREATE TABLE a (id integer);",
        "CREATE TABLE b (id integer);\nINSERT INTO a VALUES (1);\n\nSELECT nonsense;",
    )
    database = _database(empty_urls)
    with pytest.raises(
        MigrationError, match=r'app/0002_step\.sql failed in line 4: .*"nonsense" does not exist'
    ):
        await database.migrate(source)
    assert _rows(empty_urls.owner_url, "SELECT count(*), to_regclass('b') FROM a") == [(0, None)]
    (tmp_path / "0002_step.sql").write_text("CREATE TABLE b (id integer)")
    assert await database.migrate(source) == ["app/0002_step.sql"]


async def test_a_script_of_many_statements_runs_unchanged(empty_urls: DatabaseUrls, tmp_path: Path) -> None:
    """Dollar quotes, percent signs and semicolons in strings need no escaping."""
    text = """
        CREATE TABLE a (t text);
        DO $$ BEGIN INSERT INTO a VALUES ('50 %; {x} %s'); END $$;
        CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT t FROM a;';
    """
    await _database(empty_urls).migrate(_source(tmp_path, text))
    assert _rows(empty_urls.owner_url, "SELECT f()") == [("50 %; {x} %s",)]


@pytest.mark.parametrize("end", ["COMMIT;", "COMMIT; BEGIN;", "ROLLBACK; BEGIN;"])
async def test_a_migration_may_not_end_its_transaction(
    empty_urls: DatabaseUrls, tmp_path: Path, end: str
) -> None:
    """A later failure would leave it half applied, so it is refused and not recorded."""
    source = _source(tmp_path, f"CREATE TABLE a (id integer); {end} SELECT 1;")
    with pytest.raises(MigrationError, match="ends its transaction by itself"):
        await _database(empty_urls).migrate(source)
    assert _rows(empty_urls.owner_url, "SELECT count(*) FROM watchkeeper_migrations") == [(0,)]


async def test_a_changed_migration_is_refused(empty_urls: DatabaseUrls, tmp_path: Path) -> None:
    """Otherwise the schema of a database would be unknown."""
    source = _source(tmp_path, "CREATE TABLE a (id integer)")
    database = _database(empty_urls)
    await database.migrate(source)
    (tmp_path / "0001_step.sql").write_text("CREATE TABLE a (id bigint)")
    with pytest.raises(MigrationError, match="restore the file"):
        await database.migrate(source)


async def test_a_newer_database_is_refused_by_older_code(empty_urls: DatabaseUrls, tmp_path: Path) -> None:
    """The older release does not start; one that already runs stays ready."""
    newer = _source(tmp_path / "newer", "CREATE TABLE a (id integer)", "CREATE TABLE b (id integer)")
    older = _source(tmp_path / "older", "CREATE TABLE a (id integer)")
    database = _database(empty_urls)
    await database.migrate(newer)
    with pytest.raises(
        MigrationError, match="newer than this code: it has migration 0002 of app, the code has 1"
    ):
        await database.migrate(older)
    async with database:
        assert not await database.pending(older)
        assert await database.pending(newer, LIBRARY_MIGRATIONS)


async def test_pending_reports_missing_migrations(empty_urls: DatabaseUrls, tmp_path: Path) -> None:
    """For the service's role it is true before migrating and with newer code, else false."""
    source = _source(tmp_path, "CREATE TABLE a (id integer)")
    async with _database(empty_urls) as database:
        assert await database.pending(source)
        await database.migrate(LIBRARY_MIGRATIONS, source)
        assert not await database.pending()
        (tmp_path / "0002_more.sql").write_text("CREATE TABLE b (id integer)")
        assert await database.pending()
        assert not await database.pending(LIBRARY_MIGRATIONS)


async def test_grants_name_the_service_role(empty_urls: DatabaseUrls, tmp_path: Path) -> None:
    """They are applied at each migration, so that revoked ones return."""
    source = _source(
        tmp_path,
        "CREATE TABLE a (id integer)",
        grants="REVOKE ALL ON a FROM {service}; GRANT SELECT ON a TO {service}",
    )
    database = _database(empty_urls)
    await database.migrate(source)
    may = "SELECT has_table_privilege('keeper', 'a', 'SELECT'), has_table_privilege('keeper', 'a', 'DELETE')"
    assert _rows(empty_urls.owner_url, may) == [(True, False)]
    with psycopg.connect(empty_urls.owner_url, autocommit=True) as conn:
        conn.execute("REVOKE ALL ON a FROM keeper")
        conn.execute("GRANT DELETE ON a TO keeper")
    await database.migrate(source)
    assert _rows(empty_urls.owner_url, may) == [(True, False)]


async def test_failing_grants_are_an_error_that_names_them(empty_urls: DatabaseUrls, tmp_path: Path) -> None:
    """An error in grants.sql names the file."""
    source = _source(tmp_path, "CREATE TABLE a (id integer)", grants="GRANT SELECT ON b TO {service}")
    with pytest.raises(MigrationError, match=r'app/grants\.sql failed: relation "b" does not exist'):
        await _database(empty_urls).migrate(source)


async def test_a_single_role_works_with_a_warning(empty_urls: DatabaseUrls) -> None:
    """Without an owner of its own the service migrates too, and a warning explains the risk."""
    async with Database(empty_urls.owner_url) as database:
        await database.migrate()
        assert not await database.pending()
    (warning,) = database.warnings
    assert "keeper_owner, which owns the tables: it can switch off the protection" in warning


async def test_a_superuser_gets_a_warning(any_urls: DatabaseUrls) -> None:
    """It works, but the database cannot restrict it."""
    database = Database(any_urls.superuser_url, owner_url=any_urls.owner_url)
    await database.migrate()
    (warning,) = database.warnings
    assert "postgres, which is a superuser" in warning


async def test_invisible_tables_give_a_warning(any_urls: DatabaseUrls) -> None:
    """A different search_path would otherwise show only as never ready."""
    with psycopg.connect(any_urls.superuser_url, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA elsewhere AUTHORIZATION keeper")
        conn.execute(
            sql.SQL("ALTER ROLE keeper IN DATABASE {} SET search_path = elsewhere").format(
                sql.Identifier(any_urls.name)
            )
        )
    database = _database(any_urls)
    (warning,) = await database.inspect()
    assert "keeper does not see the migrated tables" in warning
    async with database:
        assert await database.pending()


async def test_a_read_only_server_is_refused(empty_urls: DatabaseUrls) -> None:
    """The error has the server's reason."""
    with psycopg.connect(empty_urls.superuser_url, autocommit=True) as conn:
        conn.execute(
            sql.SQL("ALTER ROLE keeper_owner IN DATABASE {} SET default_transaction_read_only = on").format(
                sql.Identifier(empty_urls.name)
            )
        )
    with pytest.raises(MigrationError, match="The migration failed: cannot execute CREATE TABLE"):
        await _database(empty_urls).migrate()


async def test_a_role_without_create_is_refused(empty_urls: DatabaseUrls) -> None:
    """The service's role alone cannot migrate; the error names the setting."""
    with pytest.raises(MigrationError, match=r"keeper may not create tables here .* set DATABASE_OWNER_URL"):
        await Database(empty_urls.url).migrate()


def test_ten_replicas_may_start_at_once(postgres: PostgresServer, tmp_path: Path) -> None:
    """Each of ten processes finds the database migrated, and each migration ran once."""
    source = _source(
        tmp_path,
        "CREATE TABLE a (id integer)",
        "INSERT INTO a VALUES (1)",
        grants="GRANT SELECT ON a TO {service}",
    )
    urls = postgres.create_database()
    program = """
import asyncio, json, pathlib, sys
from watchkeeper.database import Database, MigrationSource
from watchkeeper.database._migrations import LIBRARY_MIGRATIONS
url, owner_url, folder = sys.argv[1:]
source = MigrationSource(name="app", folder=pathlib.Path(folder))
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(asyncio.run(Database(url, owner_url=owner_url).migrate(LIBRARY_MIGRATIONS, source))))
"""
    replicas = [
        subprocess.Popen(
            [sys.executable, "-c", program, urls.url, urls.owner_url, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]
    for replica in replicas:
        assert replica.stdout is not None
        assert replica.stdout.readline() == "ready\n"
    for replica in replicas:
        assert replica.stdin is not None
        replica.stdin.write("\n")
        replica.stdin.flush()
    outputs = [replica.communicate() for replica in replicas]
    assert [replica.returncode for replica in replicas] == [0] * 10
    applied = sorted(name for output, _ in outputs for name in json.loads(output))
    assert applied == sorted(str(m) for m in [*LIBRARY_MIGRATIONS.read(), *source.read()])
    assert _rows(urls.url, "SELECT * FROM a") == [(1,)]
    postgres.drop_database(urls.name)


async def test_a_migration_retries_for_its_lock(any_urls: DatabaseUrls, tmp_path: Path) -> None:
    """A long transaction delays it, and is mentioned if it does not end."""
    source = _source(tmp_path, "ALTER TABLE audit_log ADD COLUMN more text")
    database = _database(any_urls)
    async with await psycopg.AsyncConnection.connect(any_urls.owner_url) as holder:
        await holder.execute("SELECT FROM audit_log")
        with pytest.raises(MigrationError, match=r"app got no lock in 3 attempts: .*lock timeout.*end it"):
            await database.migrate(source, timeouts=QUICK)
        waiting = asyncio.create_task(database.migrate(source))
        await asyncio.sleep(0.2)
        await holder.rollback()
        assert await waiting == ["app/0001_step.sql"]


async def test_the_wait_for_another_migration_is_bounded(any_urls: DatabaseUrls) -> None:
    """A process that is stuck in its migration does not block the others for ever."""
    async with await psycopg.AsyncConnection.connect(any_urls.owner_url) as other:
        await other.execute("SELECT pg_advisory_xact_lock(hashtextextended('watchkeeper_migrations', 0))")
        with pytest.raises(
            MigrationError, match=r"Another process has been migrating this database for 0:00:00\.3"
        ):
            await _database(any_urls).migrate(timeouts=QUICK)


@pytest.mark.parametrize("text", ["CREATE TABLE b (id integer)", None])
async def test_losing_the_server_while_migrating_is_unavailability(
    postgres_private: PostgresServer, tmp_path: Path, text: str | None
) -> None:
    """The migration can be started again and continues, grants included."""
    urls = postgres_private.create_database()
    end_it = "SELECT pg_terminate_backend(pg_backend_pid())"
    source = _source(tmp_path, "CREATE TABLE a (id integer)", text or end_it, grants=end_it if text else None)
    with pytest.raises(DatabaseUnavailableError, match="terminating connection"):
        await _database(urls).migrate(source)
    (tmp_path / "grants.sql").unlink(missing_ok=True)
    (tmp_path / "0002_step.sql").write_text("CREATE TABLE b (id integer)")
    assert await _database(urls).migrate(source) == ([] if text else ["app/0002_step.sql"])


def _numbered(query: str) -> str:
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return re.sub(r"%\((\w+)\)s", number, query).replace("%%", "%")


@pytest.mark.parametrize(
    "queries",
    [Queries.load("watchkeeper.audit", "audit"), Queries.load("watchkeeper.database", "migrations"), QUERIES],
    ids=["audit", "migrations", "retention"],
)
def test_every_query_fits_the_migrated_schema(any_urls: DatabaseUrls, queries: Queries) -> None:
    """Each supported server knows every table, column and function of the queries."""
    fixed = [query for query in queries if "{" not in queries[query]]
    assert fixed
    with psycopg.connect(any_urls.url, autocommit=True) as conn:
        for query in fixed:
            result = conn.pgconn.prepare(query.encode(), _numbered(queries[query]).encode())
            # A parameter of unknown type is no mismatch, and a utility statement has no parameters.
            wrong = result.status == ExecStatus.FATAL_ERROR and result.error_field(DiagnosticField.SQLSTATE)
            assert wrong in (False, b"42P18"), f"{query}: {result.error_message.decode()}"

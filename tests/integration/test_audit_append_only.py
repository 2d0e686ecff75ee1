"""The audit log refuses changes by any role, and tampering with its protection is detected."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors

from support.postgres import DatabaseUrls
from watchkeeper import audit

CHANGES = [
    "UPDATE audit_log SET actor_id = 'x'",
    "UPDATE audit_log SET actor_id = 'x' WHERE false",
    "DELETE FROM audit_log",
    "DELETE FROM ONLY audit_log WHERE false",
    "TRUNCATE audit_log",
    "TRUNCATE audit_log RESTART IDENTITY CASCADE",
    "MERGE INTO audit_log USING (SELECT 1) AS x (id) ON audit_log.id = x.id WHEN MATCHED THEN DELETE",
    """
    INSERT INTO audit_log (id, actor_type, actor_id, action, entity) OVERRIDING SYSTEM VALUE
    VALUES (1, 'user', 'u', 'a', 'e') ON CONFLICT (id) DO UPDATE SET actor_id = 'x'
    """,
]
DISARM = """
    CREATE OR REPLACE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'
"""
INSERT = (
    "INSERT INTO audit_log (actor_type, actor_id, action, entity) VALUES ('user', 'u', 'test.write', 'thing')"
)


@pytest.fixture
def owner(any_urls: DatabaseUrls) -> Iterator[psycopg.Connection]:
    """A connection of the owner of a log with one entry."""
    with psycopg.connect(any_urls.owner_url, autocommit=True) as conn:
        conn.execute(INSERT)
        yield conn


@pytest.fixture
def superuser(any_urls: DatabaseUrls, owner: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A connection of the superuser to a log with one entry."""
    assert not owner.closed
    with psycopg.connect(any_urls.superuser_url, autocommit=True) as conn:
        yield conn


def _count(conn: psycopg.Connection) -> int:
    return int(conn.execute("SELECT count(*) FROM audit_log WHERE actor_id = 'u'").fetchall()[0][0])


@pytest.mark.parametrize("statement", CHANGES)
def test_the_owner_is_refused(owner: psycopg.Connection, statement: str) -> None:
    """The error has a hint, even where no row would be affected."""
    with pytest.raises(
        errors.InsufficientPrivilege, match=r"audit_log is append-only: \w+ is refused"
    ) as caught:
        owner.execute(statement.encode())
    assert caught.value.diag.message_hint == (
        "Entries are never changed or removed; write a new one that corrects the old."
    )
    assert _count(owner) == 1


@pytest.mark.parametrize("statement", CHANGES)
def test_a_superuser_is_refused_even_as_a_replica(superuser: psycopg.Connection, statement: str) -> None:
    """The triggers are ENABLE ALWAYS, so session_replication_role does not disable them."""
    superuser.execute("SET session_replication_role = replica")
    with pytest.raises(errors.InsufficientPrivilege, match="audit_log is append-only"):
        superuser.execute(statement.encode())
    assert _count(superuser) == 1


def test_a_parent_table_does_not_bypass_the_triggers(superuser: psycopg.Connection) -> None:
    """Statements on a parent table cannot change its rows."""
    superuser.execute("CREATE TABLE parent (actor_id text)")
    superuser.execute("ALTER TABLE audit_log INHERIT parent")
    for statement in ("UPDATE parent SET actor_id = 'x'", "DELETE FROM parent", "TRUNCATE parent"):
        with pytest.raises(errors.InsufficientPrivilege, match="audit_log is append-only"):
            superuser.execute(statement.encode())
    assert _count(superuser) == 1


@pytest.mark.parametrize(
    "statement",
    [
        *CHANGES,
        "ALTER TABLE audit_log DISABLE TRIGGER ALL",
        "DROP TRIGGER audit_log_append_only ON audit_log",
        "DROP TABLE audit_log",
        DISARM,
        "SET session_replication_role = replica",
        INSERT.replace("(actor_type", "(created_at, actor_type").replace("('user'", "('2020-01-01', 'user'"),
        INSERT.replace("(actor_type", "(id, actor_type").replace(
            "VALUES (", "OVERRIDING SYSTEM VALUE VALUES (9, "
        ),
    ],
)
def test_the_service_may_only_add_and_read(any_urls: DatabaseUrls, statement: str) -> None:
    """Its role may not update, run DDL, or choose an entry's time or id."""
    with psycopg.connect(any_urls.url, autocommit=True) as conn:
        conn.execute(INSERT)
        with pytest.raises(errors.InsufficientPrivilege, match=r"permission denied|must be owner"):
            conn.execute(statement.encode())
        assert _count(conn) == 1


def test_the_service_role_has_no_privileges(any_urls: DatabaseUrls) -> None:
    """It is no superuser and owns nothing in the database."""
    with psycopg.connect(any_urls.url, autocommit=True) as conn:
        owns = conn.execute(
            "SELECT count(*) FROM pg_shdepend WHERE deptype = 'o' AND refobjid = current_user::regrole"
            " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchall()
        powers = conn.execute(
            "SELECT rolsuper, rolcreaterole, rolbypassrls FROM pg_roles WHERE rolname = current_user"
        ).fetchall()
    assert owns == [(0,)]
    assert powers == [(False, False, False)]


@pytest.mark.parametrize(
    ("values", "constraint"),
    [
        ("'robot', 'u', 'a', 'e', NULL, '{}'", "actor_type"),
        ("'user', '', 'a', 'e', NULL, '{}'", "actor_id"),
        ("'user', repeat('x', 256), 'a', 'e', NULL, '{}'", "actor_id"),
        ("'user', 'u', 'Bad Action', 'e', NULL, '{}'", "action"),
        ("'user', 'u', repeat('a', 101), 'e', NULL, '{}'", "action"),
        ("'user', 'u', 'a', '', NULL, '{}'", "entity"),
        ("'user', 'u', 'a', 'e', '', '{}'", "entity_id"),
        ("'user', 'u', 'a', 'e', NULL, '[]'", "payload"),
    ],
)
def test_the_table_checks_other_programs_inserts(
    owner: psycopg.Connection, values: str, constraint: str
) -> None:
    """Another program's INSERT has to satisfy the rules of `append`."""
    columns = "actor_type, actor_id, action, entity, entity_id, payload"
    statement = f"INSERT INTO audit_log ({columns}) VALUES ({values})"  # noqa: S608  # our own values, above
    with pytest.raises(errors.CheckViolation, match=f"audit_log_{constraint}_check"):
        owner.execute(statement.encode())


async def _findings(urls: DatabaseUrls) -> list[str]:
    async with await psycopg.AsyncConnection.connect(urls.url) as conn:
        return await audit.protection(conn)


async def test_a_fresh_log_has_no_findings(any_urls: DatabaseUrls) -> None:
    """`protection` finds nothing on a migrated database of each supported version."""
    assert await _findings(any_urls) == []


def _again(name: str, definition: str) -> str:
    return (
        f"CREATE OR REPLACE TRIGGER {name} BEFORE {definition} EXECUTE FUNCTION audit_log_refuse();"
        f" ALTER TABLE audit_log ENABLE ALWAYS TRIGGER {name}"
    )


EACH = "The trigger audit_log_append_only"
ROWS = "The trigger audit_log_append_only_rows"
TAMPERING = {
    "DROP TRIGGER audit_log_append_only ON audit_log": [f"{EACH} does not exist"],
    "ALTER TABLE audit_log DISABLE TRIGGER audit_log_append_only": [f"{EACH} is not ENABLE ALWAYS"],
    "ALTER TABLE audit_log ENABLE TRIGGER audit_log_append_only_rows": [f"{ROWS} is not ENABLE ALWAYS"],
    "ALTER TABLE audit_log DISABLE TRIGGER USER": [
        f"{EACH} is not ENABLE ALWAYS",
        f"{ROWS} is not ENABLE ALWAYS",
    ],
    DISARM: [f"{EACH} differs from that of the migrations", f"{ROWS} differs from that of the migrations"],
    _again("audit_log_append_only", "UPDATE ON audit_log"): [f"{EACH} differs from that of the migrations"],
    _again("audit_log_append_only_rows", "UPDATE OR DELETE ON audit_log FOR EACH ROW WHEN (OLD.id < 0)"): [
        f"{ROWS} differs from that of the migrations"
    ],
    _again("audit_log_append_only_rows", "UPDATE OF payload OR DELETE ON audit_log FOR EACH ROW"): [
        f"{ROWS} differs from that of the migrations"
    ],
    "ALTER TABLE audit_log SET UNLOGGED": ["audit_log is UNLOGGED"],
    "CREATE RULE swallow AS ON INSERT TO audit_log DO INSTEAD NOTHING": ["audit_log has a rule"],
    "ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY": ["audit_log has row level security"],
    "CREATE TRIGGER mine BEFORE INSERT ON audit_log EXECUTE FUNCTION audit_log_refuse()": [
        "The trigger mine runs before each INSERT"
    ],
    "CREATE TRIGGER mine AFTER INSERT ON audit_log EXECUTE FUNCTION audit_log_refuse()": [],
    "ALTER TABLE audit_log RENAME TO old_log": ["audit_log does not exist"],
    "ALTER TABLE audit_log RENAME TO old_log; CREATE TABLE audit_log (id bigint)": [
        f"{EACH} does not exist",
        f"{ROWS} does not exist",
    ],
}


@pytest.mark.parametrize("statement", TAMPERING)
async def test_tampering_with_the_protection_is_found(any_urls: DatabaseUrls, statement: str) -> None:
    """The owner's DDL is not prevented, but each way is detected."""
    with psycopg.connect(any_urls.owner_url, autocommit=True) as conn:
        conn.execute(statement.encode())
    found = await _findings(any_urls)
    assert len(found) == len(TAMPERING[statement])
    for sentence, expected in zip(found, TAMPERING[statement], strict=True):
        assert sentence.startswith(expected)

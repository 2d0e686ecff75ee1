"""The runbook's queries and commands, run against a database and a terminal."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from support.postgres import DatabaseUrls, PostgresServer

RUNBOOK = (Path(__file__).parents[2] / "infra/monitoring/README.md").read_text(encoding="utf-8")
SQL_BLOCKS = re.findall(r"```sql\n(.*?)```", RUNBOOK, re.DOTALL)
ROLES = ("realestate_backend", "realestate_backend_owner")


@pytest.mark.parametrize("statement", [block for block in SQL_BLOCKS if block.startswith("SELECT")])
def test_runbook_query_runs(statement: str, database_urls: DatabaseUrls) -> None:
    """Its columns and tables exist, and the service's role may read them."""
    with psycopg.connect(database_urls.url, autocommit=True) as conn:
        described = conn.execute(statement.encode()).description
    assert described is not None
    assert len(described) > 4


def keep(url: str, owner_url: str, folder: Path, server: PostgresServer, *arguments: str) -> str:
    """Run a keeper command on a real server and return its output."""
    environ = {
        **os.environ,
        "DATABASE_URL": url,
        "DATABASE_OWNER_URL": owner_url,
        "WATCHKEEPER_STATE_DIR": str(folder),
        "PATH": f"{server._bin}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "realestate", "keep", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_data_moves_to_a_real_server(
    postgres: PostgresServer, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    """The runbook's roles and database take a backup in, with the same protection."""
    [roles] = [block for block in SQL_BLOCKS if block.startswith("CREATE ROLE")]
    with psycopg.connect(database_urls.owner_url) as conn:
        conn.execute(
            "INSERT INTO audit_log (actor_type, actor_id, action, entity)"
            " VALUES ('system', 'test', 'moved', 'everything')"
        )
    with psycopg.connect(postgres.url(), autocommit=True) as conn:
        for statement in roles.split(";"):
            conn.execute(statement.encode())
    try:
        new, new_owner = (postgres.url("realestate_backend", role) for role in ROLES)
        dump = tmp_path / "realestate.dump"
        keep(database_urls.url, database_urls.owner_url, tmp_path, postgres, "db", "dump", str(dump))
        keep(new, new_owner, tmp_path, postgres, "db", "restore", "--yes", str(dump))
        status = json.loads(keep(new, new_owner, tmp_path, postgres, "db", "status", "--json"))
        assert (status["role"], status["warnings"]) == ("realestate_backend", [])
        assert status["pending_migrations"] is False
        with psycopg.connect(new) as conn:
            actions = conn.execute("SELECT action FROM audit_log ORDER BY id").fetchall()
            assert actions == [("moved",), ("database.restore",)]
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
                conn.execute("DELETE FROM audit_log")
    finally:
        postgres.drop_database("realestate_backend")
        with psycopg.connect(postgres.url(), autocommit=True) as conn:
            for role in ROLES:
                conn.execute(f"DROP ROLE {role}".encode())

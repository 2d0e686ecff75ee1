"""The roles and the database inside the embedded server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import psycopg
from psycopg import sql

from watchkeeper.database.embedded._places import PORT

if TYPE_CHECKING:
    from pathlib import Path

SUPERUSER: Final = "postgres"
_LOCK: Final = 0x7761746368  # "watch"


def socket_url(sockets: Path, role: str, database: str) -> str:
    """Return the URL of `database` for `role`; the port is in it because PGPORT would change the socket's name."""
    return f"postgresql://{quote(role, safe='')}@/{quote(database, safe='')}?host={quote(str(sockets), safe='')}&port={PORT}"


async def provision(sockets: Path, *, database: str, owner_role: str, service_role: str) -> None:
    """Make the roles and the database, or bring what is there into this shape.

    The owner's role owns the database and nothing else; the service's role may connect and owns nothing. Several
    starters may do this at once.

    Raises:
        psycopg.Error: The server went away, or refuses.
    """
    async with await psycopg.AsyncConnection.connect(
        socket_url(sockets, SUPERUSER, "postgres"), autocommit=True
    ) as conn:
        await conn.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        for role in (owner_role, service_role):
            await _ensure_role(conn, role)
        await _ensure_database(conn, database, owner_role, service_role)
    async with await psycopg.AsyncConnection.connect(
        socket_url(sockets, SUPERUSER, database), autocommit=True
    ) as conn:
        await conn.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


async def _ensure_role(conn: psycopg.AsyncConnection, role: str) -> None:
    rights = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
    cursor = await conn.execute(
        "SELECT rolcanlogin AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)"
        " FROM pg_roles WHERE rolname = %s",
        [role],
    )
    row = await cursor.fetchone()
    if row is None:
        await conn.execute(sql.SQL("CREATE ROLE {} " + rights).format(sql.Identifier(role)))
    elif not row[0]:
        await conn.execute(sql.SQL("ALTER ROLE {} " + rights).format(sql.Identifier(role)))


async def _ensure_database(
    conn: psycopg.AsyncConnection, database: str, owner_role: str, service_role: str
) -> None:
    names = {
        "database": sql.Identifier(database),
        "owner": sql.Identifier(owner_role),
        "service": sql.Identifier(service_role),
    }
    cursor = await conn.execute(
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", [database]
    )
    row = await cursor.fetchone()
    if row is None:
        await conn.execute(sql.SQL("CREATE DATABASE {database} OWNER {owner}").format(**names))
    elif row[0] != owner_role:
        await conn.execute(sql.SQL("ALTER DATABASE {database} OWNER TO {owner}").format(**names))
    await conn.execute(sql.SQL("REVOKE ALL ON DATABASE {database} FROM PUBLIC").format(**names))
    await conn.execute(
        sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {service}").format(**names)
    )

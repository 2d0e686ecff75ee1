"""Creates the roles and the database in the embedded server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import psycopg
from psycopg import AsyncConnection, sql

from watchkeeper.database._queries import Queries
from watchkeeper.database.embedded._paths import PORT, SUPERUSER
from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

_QUERIES: Final = Queries.load("watchkeeper.database.embedded", "embedded")
_MAX_NAME_BYTES: Final = 63  # NAMEDATALEN
_TEMPORARY_STATES: Final = ("57P", "53300")  # shutting down, starting, crashed; too many connections


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The database, the role of the same name that may connect to it, and the role that owns it."""

    service: str

    def __post_init__(self) -> None:
        name = self.service
        if name in (SUPERUSER, "template0", "template1", "public", "none") or name.startswith("pg_"):
            raise ConfigurationError(f"The name {name!r} is reserved by PostgreSQL: use another one.")
        if len(self.owner.encode()) > _MAX_NAME_BYTES:
            raise ConfigurationError(
                f"{self.owner!r}, the owner of the database, has more than {_MAX_NAME_BYTES} bytes: use a"
                " shorter name."
            )

    @property
    def owner(self) -> str:
        """The role that owns the database."""
        return f"{self.service}_owner"

    def url(self, sockets: Path, role: str) -> str:
        """Return the URL of the database for `role`."""
        return _socket_url(sockets, role, self.service)


def _socket_url(sockets: Path, role: str, database: str) -> str:
    # The port is explicit because PGPORT in the environment would change the socket's name.
    host = quote(str(sockets), safe="")
    return f"postgresql://{quote(role, safe='')}@/{quote(database, safe='')}?host={host}&port={PORT}"


async def provision(sockets: Path, names: Names) -> None:
    """Create or correct the roles and the database; safe to run concurrently."""
    parts = {
        "database": sql.Identifier(names.service),
        "owner": sql.Identifier(names.owner),
        "service": sql.Identifier(names.service),
    }
    url = _socket_url(sockets, SUPERUSER, "postgres")
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute(_QUERIES["acquire_lock"])
        for role in (names.owner, names.service):
            await _ensure_role(conn, role)
        cursor = await conn.execute(_QUERIES["database_owner"], {"database": names.service})
        owner = await cursor.fetchone()
        if owner is None:
            await conn.execute(sql.SQL(_QUERIES["create_database"]).format(**parts))
        elif owner[0] != names.owner:
            await conn.execute(sql.SQL(_QUERIES["change_owner"]).format(**parts))
        for step in ("revoke_connect", "grant_connect", "grant_stats"):
            await conn.execute(sql.SQL(_QUERIES[step]).format(**parts))
        database_url = names.url(sockets, SUPERUSER)
        async with await AsyncConnection.connect(database_url, autocommit=True) as database_conn:
            await database_conn.execute(_QUERIES["revoke_create"])


async def _ensure_role(conn: AsyncConnection, role: str) -> None:
    cursor = await conn.execute(_QUERIES["role_is_login_only"], {"role": role})
    row = await cursor.fetchone()
    if row is None or not row[0]:
        step = "create_role" if row is None else "reset_role"
        await conn.execute(sql.SQL(_QUERIES[step]).format(role=sql.Identifier(role)))


def is_temporary(error: psycopg.Error) -> bool:
    """Return whether a retry may succeed: the server starts, stops or changes its owner process."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(_TEMPORARY_STATES)

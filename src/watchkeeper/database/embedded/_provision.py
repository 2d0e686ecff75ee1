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
_LONGEST_NAME_BYTES: Final = 63  # NAMEDATALEN
_TEMPORARY_STATES: Final = ("57P", "53300")  # shutting down, starting, crashed; too many connections


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The database, the role that owns it, and the role that may connect to it and owns nothing."""

    database: str
    owner_role: str
    service_role: str

    def __post_init__(self) -> None:
        for field in ("database", "owner_role", "service_role"):
            name = getattr(self, field)
            if not 0 < len(name.encode()) <= _LONGEST_NAME_BYTES or "\0" in name:
                raise ConfigurationError(
                    f"The {field} {name!r} is not a PostgreSQL name: use 1 to {_LONGEST_NAME_BYTES} bytes."
                )
            if name in (SUPERUSER, "template0", "template1", "public", "none") or name.startswith("pg_"):
                raise ConfigurationError(f"The {field} {name!r} is reserved by PostgreSQL: use another name.")
        if self.owner_role == self.service_role:
            raise ConfigurationError(
                "owner_role and service_role are the same: the service must not own its audit log."
            )

    def url(self, sockets: Path, role: str) -> str:
        """Return the URL of the database for `role`."""
        return _socket_url(sockets, role, self.database)


def _socket_url(sockets: Path, role: str, database: str) -> str:
    # The port is explicit because PGPORT in the environment would change the socket's name.
    host = quote(str(sockets), safe="")
    return f"postgresql://{quote(role, safe='')}@/{quote(database, safe='')}?host={host}&port={PORT}"


async def provision(sockets: Path, names: Names) -> None:
    """Create or correct the roles and the database; any number of processes may do so at once."""
    parts = {
        "database": sql.Identifier(names.database),
        "owner": sql.Identifier(names.owner_role),
        "service": sql.Identifier(names.service_role),
    }
    url = _socket_url(sockets, SUPERUSER, "postgres")
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute(_QUERIES["acquire_lock"])
        for role in (names.owner_role, names.service_role):
            await _ensure_role(conn, role)
        cursor = await conn.execute(_QUERIES["database_owner"], {"database": names.database})
        owner = await cursor.fetchone()
        if owner is None:
            await conn.execute(sql.SQL(_QUERIES["create_database"]).format(**parts))
        elif owner[0] != names.owner_role:
            await conn.execute(sql.SQL(_QUERIES["change_owner"]).format(**parts))
        for step in ("revoke_connect", "grant_connect", "grant_stats"):
            await conn.execute(sql.SQL(_QUERIES[step]).format(**parts))
        inside = names.url(sockets, SUPERUSER)
        async with await AsyncConnection.connect(inside, autocommit=True) as conn_inside:
            await conn_inside.execute(_QUERIES["revoke_create"])


async def _ensure_role(conn: AsyncConnection, role: str) -> None:
    cursor = await conn.execute(_QUERIES["role_is_login_only"], {"role": role})
    plain = await cursor.fetchone()
    if plain is None or not plain[0]:
        step = "create_role" if plain is None else "reset_role"
        await conn.execute(sql.SQL(_QUERIES[step]).format(role=sql.Identifier(role)))


def is_temporary(error: psycopg.Error) -> bool:
    """Return whether a retry may succeed: the server starts, stops, or is between two owners."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(_TEMPORARY_STATES)

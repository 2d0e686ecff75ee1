"""Who the service is to the database, and what that makes weaker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.database._queries import Queries

if TYPE_CHECKING:
    from watchkeeper.database._connection import Connection

_QUERIES: Final = Queries.load("watchkeeper.database", "migrations")


async def current_role(conn: Connection) -> str:
    """Return the role that a connection acts as."""
    cursor = await conn.execute("SELECT current_user")
    return str((await cursor.fetchall())[0][0])


async def find_role_problems(conn: Connection) -> list[str]:
    """Look at how a connection's role stands to the migrated tables.

    Args:
        conn: A connection as the service's role.

    Returns:
        A sentence for each thing that makes the protection of the tables weaker, or hides them.
    """
    cursor = await conn.execute(_QUERIES["role"])
    role, superuser, visible, owner = (await cursor.fetchall())[0]
    found = []
    if superuser or owner:
        what = "is a superuser" if superuser else "owns the tables"
        found.append(
            f"The service connects as {role}, which {what}: it could switch off the protection of"
            " audit_log. Give DATABASE_URL a role of its own, and DATABASE_OWNER_URL the owner."
        )
    if not visible:
        found.append(
            f"The role {role} does not see the migrated tables: grant it USAGE on their schema, and give"
            " it the search_path of their owner."
        )
    return found

"""The privileges of the service's role that weaken the protection of its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchkeeper.database._migrations import QUERIES

if TYPE_CHECKING:
    from watchkeeper.database._connection import Connection


async def current_role(conn: Connection) -> str:
    """Return the current role of a connection."""
    cursor = await conn.execute("SELECT current_user")
    return str((await cursor.fetchall())[0][0])


async def find_role_problems(conn: Connection) -> list[str]:
    """Return a sentence for each privilege of the current role that is missing or excessive."""
    cursor = await conn.execute(QUERIES["role"])
    role, superuser, visible, owner = (await cursor.fetchall())[0]
    problems = []
    if superuser or owner:
        what = "is a superuser" if superuser else "owns the tables"
        problems.append(
            f"The service connects as {role}, which {what}: it can switch off the protection of"
            " audit_log. Give DATABASE_URL its own role, and DATABASE_OWNER_URL the owner."
        )
    if not visible:
        problems.append(
            f"The role {role} does not see the migrated tables: grant it USAGE on their schema, and give"
            " it the search_path of their owner."
        )
    return problems

"""Chat sessions: one per peer and channel, updated by every event of the peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from realestate.monitoring import load_queries

if TYPE_CHECKING:
    from uuid import UUID

    from psycopg import AsyncConnection

_QUERIES: Final = load_queries("sessions")


async def touch(
    conn: AsyncConnection[Any], *, channel: str, peer_id: str, agent_id: str | None = None
) -> UUID:
    """Mark a peer as active in the caller's transaction; return its session's id. None keeps the agent."""
    cursor = await conn.execute(
        _QUERIES["touch"], {"channel": channel, "peer_id": peer_id, "agent_id": agent_id}
    )
    row: Any = await cursor.fetchone()
    session: UUID = row[0]
    return session

"""Chat sessions: one per peer of a channel, touched by whatever the peer does."""

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
    """Note that a peer is active, in the caller's transaction, and return its session's id.

    Args:
        conn: A connection in a transaction.
        channel: One of the known channels.
        peer_id: The peer, as the channel names it.
        agent_id: Who talks to the peer; None keeps what is known.
    """
    cursor = await conn.execute(
        _QUERIES["touch"], {"channel": channel, "peer_id": peer_id, "agent_id": agent_id}
    )
    row: Any = await cursor.fetchone()
    session: UUID = row[0]
    return session

"""Signed events from outside: checked, stored once, and linked to their chat session.

An event is `{"id", "type"?, "channel"?, "peer_id"?, "agent_id"?, ...}`; it is stored as it was sent. Each
delivery of a configured source that is refused counts once in `webhook_failures_total{source}`. A middleware
counts it by the status of the response, regardless of what refused it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import psycopg
from litestar import post
from litestar.params import FromPath

from realestate import sessions
from realestate.errors import CLIENT_LEFT, ApiError, documented
from realestate.monitoring import load_queries
from realestate.openapi import takes_json
from realestate.requests import Identifier, Line, StrictRequest, check_storable, convert, decode
from realestate.signatures import SIGNATURE_HEADER, TIMESTAMP_HEADER, check_signature, check_timestamp
from watchkeeper import audit

if TYPE_CHECKING:
    from collections.abc import Container

    from psycopg import AsyncConnection

    from realestate.asgi import ASGIApp, Message, Receive, Scope, Send
    from watchkeeper.metrics import Counter

_QUERIES: Final = load_queries("webhooks")
_ROUTE: Final = "/api/webhooks/{source}"  # as in Litestar's scope["path_template"]


class Event(msgspec.Struct, kw_only=True):
    """The fields of an event that this service reads; senders may add others."""

    id: Line
    type: Line | None = None
    channel: Literal["webchat", "telegram", "whatsapp"] | None = None
    peer_id: Line | None = None
    agent_id: Identifier | None = None


class Receipt(msgspec.Struct):
    """The response to an event: whether it was already stored."""

    duplicate: bool


@post(
    "/api/webhooks/{source:str}",
    status_code=200,
    operation_class=takes_json(
        "An event: its id, optionally type, channel with peer_id, agent_id, and more."
    ),
    responses=documented(400, 401, 404, 408, 409, 413, 503),
)
async def receive_webhook(request: StrictRequest, source: FromPath[str]) -> Receipt:
    """Accept a signed event; for a known id the response is `{"duplicate": true}`."""
    secrets = request.backend.settings.webhook_secrets.get(source)
    if secrets is None:
        raise ApiError(404, "unknown_source", "This webhook source does not exist.")
    timestamp = check_timestamp(request.header(TIMESTAMP_HEADER, refusal=401))
    signature = request.header(SIGNATURE_HEADER, refusal=401)
    body = await request.body()
    check_signature(secrets, timestamp, body, signature)
    event = read_event(body)
    async with request.backend.database.transaction() as conn:
        return Receipt(duplicate=not await store(conn, source, event, body.decode()))


def read_event(body: bytes) -> Event:
    """Decode an event from a signed body.

    Raises:
        ApiError: 400: it is not a JSON object with an id, or cannot be stored.
    """
    content: dict[str, Any] = decode(body, dict[str, Any])
    check_storable(content)
    event = convert(content, Event)
    if (event.channel is None) != (event.peer_id is None):
        raise ApiError(
            400, "invalid_request", "channel and peer_id name a session together: send both or none."
        )
    return event


async def store(conn: AsyncConnection[Any], source: str, event: Event, payload: str) -> bool:
    """Store an event with its session and audit entry; return whether it was new.

    Raises:
        ApiError: 409: another source used the id before; 400: the database cannot store the payload.
    """
    values = {"id": event.id, "source": source, "payload": payload}
    try:
        cursor = await conn.execute(_QUERIES["store"], values)
    except psycopg.DataError:  # only jsonb knows what it can store
        raise ApiError(400, "invalid_request", "The body cannot be stored as JSON.") from None
    if await cursor.fetchone() is None:
        await _check_same_source(conn, source, event.id)
        return False
    session = None
    if event.channel is not None and event.peer_id is not None:
        session = await sessions.touch(
            conn, channel=event.channel, peer_id=event.peer_id, agent_id=event.agent_id
        )
    await audit.append(
        conn,
        actor_type="system",
        actor_id=f"webhook:{source}",
        action="webhook.received",
        entity="inbound_events",
        entity_id=event.id,
        # The peer is personal data, and the audit log is permanent, so it has the session's id instead.
        payload={"source": source, "type": event.type, "session": None if session is None else str(session)},
    )
    return True


async def _check_same_source(conn: AsyncConnection[Any], source: str, event_id: str) -> None:
    # As a duplicate, an event with another source's id would be dropped and reported as stored.
    cursor = await conn.execute(_QUERIES["source_of"], {"id": event_id})
    row = await cursor.fetchone()
    if row is not None and row[0] != source:
        raise ApiError(
            409,
            "event_id_taken",
            "Another source has sent an event with this id: ids are shared by all sources.",
        )


@dataclass(frozen=True, slots=True)
class FailureCounting:
    """Counts the refused deliveries of configured sources, around an ASGI app."""

    app: ASGIApp
    sources: Container[str]
    failures: Counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and check the status of the response to a delivery."""

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_refusal(message["status"]):
                source = _source_of(scope)
                if source is not None and source in self.sources:
                    self.failures.labels(source=source).inc()
            await send(message)

        await self.app(scope, receive, count)


def _is_refusal(status: int) -> bool:
    # A sender that disconnected was not refused: it will send again.
    return status >= 400 and status != CLIENT_LEFT


def _source_of(scope: Scope) -> str | None:
    if scope.get("path_template") != _ROUTE:
        return None
    source: str = scope["path_params"]["source"]
    return source

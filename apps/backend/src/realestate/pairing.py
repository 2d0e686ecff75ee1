"""Pairing of chat peers: the gateway requests a code, shows it to the peer, and the operator confirms it.

`request` returns the code once. `confirm` counts wrong attempts under a row lock; the fifth within 15 minutes
locks the peer out for 15 minutes, which a new code does not end. Wrong, expired and locked attempts count in
`pairing_failures_total{channel}` and are audited like the approvals, under a pseudonym of the peer.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
from litestar import post
from litestar.params import FromPath, JSONBody
from psycopg.rows import class_row, scalar_row

from realestate.auth import require_service_token
from realestate.errors import ApiError, documented
from realestate.monitoring import CHANNELS, load_queries
from realestate.pairing_codes import (
    VALID_FOR,
    Decision,
    Outcome,
    Pair,
    decide,
    hash_code,
    make_code,
    pseudonym,
)
from realestate.requests import Line, StrictRequest
from watchkeeper import audit

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from watchkeeper.settings import Secret

_QUERIES: Final = load_queries("pairing")


class PairingRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Requests a code for a peer."""

    peer_id: Line


class PairingCode(msgspec.Struct):
    """A code; it is shown only once."""

    channel: str
    peer_id: str
    code: str
    expires_at: datetime


class PairingConfirmation(msgspec.Struct, forbid_unknown_fields=True):
    """A code as the peer read it out."""

    peer_id: Line
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Approval(msgspec.Struct):
    """The response to a successful confirmation."""

    channel: str
    peer_id: str
    approved_at: datetime
    status: str = "approved"


@post(
    "/api/pairing/{channel:str}/request",
    status_code=200,
    guards=[require_service_token],
    responses=documented(400, 401, 404, 408, 413, 429, 503),
)
async def request_pairing(
    request: StrictRequest, channel: FromPath[str], data: JSONBody[PairingRequest]
) -> PairingCode:
    """Return a new code for the peer; it replaces the previous one."""
    _check_channel(channel)
    peer = _Peer(channel, data.peer_id)
    code, agent, alias = make_code(), request.agent, peer.pseudonym(_token(request))
    async with request.backend.database.transaction() as conn:
        pair = await _lock(conn, peer)
        locked_for = pair.locked_for if pair else timedelta(0)
        if locked_for:
            await _audit(conn, agent, "pairing.refused", alias, Outcome.LOCKED.value)
        else:
            attempts = pair.counting_attempts if pair else 0
            expires_at = await _issue(conn, peer, peer.hash(_token(request), code), attempts)
            await _audit(conn, agent, "pairing.requested", alias)
    if locked_for:
        request.backend.metrics.pairing_failures.labels(channel=channel).inc()
        raise _refusal(Outcome.LOCKED, locked_for)
    return PairingCode(channel=channel, peer_id=data.peer_id, code=code, expires_at=expires_at)


@post(
    "/api/pairing/{channel:str}/confirm",
    status_code=200,
    guards=[require_service_token],
    responses=documented(400, 401, 403, 404, 408, 410, 413, 429, 503),
)
async def confirm_pairing(
    request: StrictRequest, channel: FromPath[str], data: JSONBody[PairingConfirmation]
) -> Approval:
    """Approve the peer if the code is correct; a code can be confirmed again until it expires."""
    _check_channel(channel)
    peer = _Peer(channel, data.peer_id)
    given, alias = peer.hash(_token(request), data.code), peer.pseudonym(_token(request))
    agent = request.agent
    async with request.backend.database.transaction() as conn:
        pair = await _lock(conn, peer)
        decision = decide(pair, given)
        if decision.outcome is Outcome.APPROVED:
            approved_at = await _approve(conn, peer)
            await _audit(conn, agent, "pairing.approved", alias)
        else:
            await _count_wrong(conn, peer, decision)
            await _audit(conn, agent, "pairing.refused", alias, decision.outcome.value)
    if decision.outcome is not Outcome.APPROVED:
        request.backend.metrics.pairing_failures.labels(channel=channel).inc()
        raise _refusal(decision.outcome, pair.locked_for if pair else timedelta(0))
    return Approval(channel=channel, peer_id=data.peer_id, approved_at=approved_at)


class _Peer(NamedTuple):
    channel: str
    peer_id: str

    def hash(self, token: Secret, code: str) -> bytes:
        return hash_code(token, self.channel, self.peer_id, code)

    def pseudonym(self, token: Secret) -> str:
        return pseudonym(token, self.channel, self.peer_id)


def _check_channel(channel: str) -> None:
    if channel not in CHANNELS:
        raise ApiError(
            404, "unknown_channel", f"This channel does not exist; there are {', '.join(CHANNELS)}."
        )


def _token(request: StrictRequest) -> Secret:
    token = request.backend.settings.service_token
    assert token is not None  # noqa: S101 - the guard refuses requests without one
    return token


async def _lock(conn: AsyncConnection[Any], peer: _Peer) -> Pair | None:
    async with conn.cursor(row_factory=class_row(Pair)) as cursor:
        await cursor.execute(_QUERIES["lock"], peer._asdict())
        return await cursor.fetchone()


async def _issue(conn: AsyncConnection[Any], peer: _Peer, code_hash: bytes, attempts: int) -> datetime:
    async with conn.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(
            _QUERIES["issue"],
            {**peer._asdict(), "code_hash": code_hash, "attempts": attempts, "valid_for": VALID_FOR},
        )
        return _utc(await cursor.fetchone())


async def _approve(conn: AsyncConnection[Any], peer: _Peer) -> datetime:
    async with conn.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(_QUERIES["approve"], peer._asdict())
        return _utc(await cursor.fetchone())


async def _count_wrong(conn: AsyncConnection[Any], peer: _Peer, decision: Decision) -> None:
    if decision.outcome is Outcome.WRONG:
        await conn.execute(
            _QUERIES["count_wrong"],
            {**peer._asdict(), "attempts": decision.attempts, "locked_until": decision.locked_until},
        )


async def _audit(
    conn: AsyncConnection[Any], agent: str, action: str, alias: str, reason: str | None = None
) -> None:
    await audit.append(
        conn,
        actor_type="agent",
        actor_id=agent,
        action=action,
        entity="pairing",
        # The peer is personal data, and the audit log is permanent, so it has a keyed hash instead.
        entity_id=alias,
        payload={"reason": reason} if reason else None,
    )


def _utc(value: Any) -> datetime:
    moment: datetime = value
    return moment.astimezone(UTC)


def _refusal(outcome: Outcome, locked_for: timedelta) -> ApiError:
    if outcome is Outcome.LOCKED:
        seconds = math.ceil(locked_for.total_seconds())
        return ApiError(
            429,
            "pairing_locked",
            f"Too many wrong codes: this peer is locked out for {seconds} seconds.",
            headers={"Retry-After": str(seconds)},
        )
    if outcome is Outcome.EXPIRED:
        return ApiError(410, "code_expired", "The code has expired: request a new one.")
    return ApiError(403, "wrong_code", "The code is wrong.")

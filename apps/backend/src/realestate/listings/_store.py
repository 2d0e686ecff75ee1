"""Listings in the database."""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from psycopg.rows import DictRow, dict_row

from realestate.errors import ApiError
from realestate.listings._model import Draft, Listing, Page, Search, Status
from realestate.listings._rules import check_search
from realestate.monitoring import load_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg import AsyncConnection

_QUERIES: Final = load_queries("listings")
_MAX_CANDIDATES: Final = 50


async def create(conn: AsyncConnection[Any], draft: Draft, key: str | None) -> tuple[Listing, bool]:
    """Store a listing; return it and whether it is new. A repeated key and draft return the first listing.

    Raises:
        ApiError: 422: the `Idempotency-Key` was used with another draft.
    """
    values = msgspec.structs.asdict(draft)
    fingerprint = hashlib.sha256(msgspec.json.encode(draft, order="sorted")).digest() if key else None
    row = await _one(conn, "create", {**values, "idempotency_key": key, "request_hash": fingerprint})
    if row is not None:
        return _listing(row), True
    first = await _one(conn, "by_key", {"idempotency_key": key})
    assert first is not None  # noqa: S101 - listings are never deleted, and the key was taken
    if first.pop("request_hash") != fingerprint:
        raise ApiError(
            422, "idempotency_key_reused", "This Idempotency-Key belongs to another request: use a new one."
        )
    return _listing(first), False


async def find(conn: AsyncConnection[Any], listing_id: UUID) -> Listing | None:
    """Return a listing, or None."""
    row = await _one(conn, "by_id", {"id": listing_id})
    return _listing(row) if row else None


async def search(conn: AsyncConnection[Any], wanted: Search, statuses: Sequence[Status]) -> Page:
    """Return a page of the listings that match all filters and have one of the statuses, newest first.

    Raises:
        ApiError: 400: the filters contradict each other, or the cursor is invalid.
    """
    check_search(wanted)
    after_time, after_id = _read_cursor(wanted.cursor) if wanted.cursor else (None, None)
    values = {
        **msgspec.structs.asdict(wanted),
        "statuses": list(statuses),
        "after_time": after_time,
        "after_id": after_id,
        "limit": wanted.limit + 1,  # one more, to know whether there is a next page
    }
    found = [_listing(row) for row in await _all(conn, "search", values)]
    page, more = found[: wanted.limit], len(found) > wanted.limit
    return Page(listings=page, next_cursor=_write_cursor(page[-1]) if more else None)


async def review_queue(conn: AsyncConnection[Any], limit: int) -> list[Listing]:
    """Return the listings that wait for a decision, the oldest first."""
    return [_listing(row) for row in await _all(conn, "review_queue", {"limit": limit})]


async def find_candidates(
    conn: AsyncConnection[Any], draft: Draft, box: Mapping[str, float | None]
) -> list[DictRow]:
    """Return candidates for duplicates of `draft` in a box around it, for the caller to score."""
    values = {**msgspec.structs.asdict(draft), **box, "limit": _MAX_CANDIDATES}
    return await _all(conn, "find_candidates", values)


async def lock_status(conn: AsyncConnection[Any], listing_id: UUID) -> Status | None:
    """Return a listing's status, locked until the transaction ends."""
    row = await _one(conn, "lock_status", {"id": listing_id})
    return row["status"] if row else None


async def set_status(conn: AsyncConnection[Any], listing_id: UUID, status: Status) -> None:
    """Set the status of a listing locked by `lock_status`."""
    await conn.execute(_QUERIES["set_status"], {"id": listing_id, "status": status})


async def _one(conn: AsyncConnection[Any], query: str, values: Mapping[str, Any]) -> DictRow | None:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_QUERIES[query], values)
        return await cursor.fetchone()


async def _all(conn: AsyncConnection[Any], query: str, values: Mapping[str, Any]) -> list[DictRow]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_QUERIES[query], values)
        return await cursor.fetchall()


def _listing(row: DictRow) -> Listing:
    row["created_at"] = row["created_at"].astimezone(UTC)
    return Listing(**row)


def _write_cursor(last: Listing) -> str:
    return base64.urlsafe_b64encode(f"{last.created_at.isoformat()}|{last.id}".encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, UUID]:
    try:
        moment, _, listing_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition("|")
        return datetime.fromisoformat(moment).astimezone(UTC), UUID(listing_id)
    except (ValueError, OverflowError, binascii.Error):
        raise ApiError(400, "invalid_request", "cursor takes the next_cursor of an earlier page.") from None

"""The endpoints of listings: writing needs the token; without it only published ones are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from realestate.auth import has_service_token, require_service_token
from realestate.errors import ApiError, documented
from realestate.listings import _store
from realestate.listings._model import (
    PUBLIC_STATUSES,
    STATUSES,
    Draft,
    Listing,
    ListingType,
    Page,
    Search,
    Status,
)
from realestate.listings._rules import check_draft
from realestate.requests import StrictRequest, convert
from watchkeeper import audit

if TYPE_CHECKING:
    from collections.abc import Sequence


@post("/api/listings", guards=[require_service_token], responses=documented(400, 401, 408, 413, 422, 503))
async def create_listing(request: StrictRequest, data: JSONBody[Draft]) -> Response[Listing]:
    """Store a listing; with an `Idempotency-Key`, a repeat returns the first listing."""
    check_draft(data)
    key, agent = request.idempotency_key, request.agent
    async with request.backend.database.transaction() as conn:
        listing, new = await _store.create(conn, data, key)
        if new:
            await audit.append(
                conn,
                actor_type="agent",
                actor_id=agent,
                action="listing.created",
                entity="listings",
                entity_id=str(listing.id),
                payload={"type": listing.type, "status": listing.status},
            )
    headers = {"Location": f"/api/listings/{listing.id}"}
    if not new:
        headers["Idempotency-Replayed"] = "true"
    return Response(listing, headers=headers)


@get("/api/listings/{listing_id:uuid}", responses=documented(400, 401, 404, 503))
async def get_listing(request: StrictRequest, listing_id: FromPath[UUID]) -> Listing:
    """Return a listing; without the token only a published one."""
    visible = _visible(request)
    async with request.backend.database.connection() as conn:
        listing = await _store.find(conn, listing_id)
    if listing is None or listing.status not in visible:
        raise ApiError(404, "not_found", "This listing does not exist.")
    return listing


@get("/api/listings/search", responses=documented(400, 401, 503))
async def search_listings(  # noqa: PLR0913 - one per filter, for OpenAPI
    *,
    request: StrictRequest,
    type: FromQuery[ListingType | None] = None,  # noqa: A002 - the name in the URL
    text: FromQuery[str | None] = None,
    price_min: FromQuery[int | None] = None,
    price_max: FromQuery[int | None] = None,
    currency: FromQuery[str | None] = None,
    bedrooms_min: FromQuery[int | None] = None,
    south: FromQuery[float | None] = None,
    north: FromQuery[float | None] = None,
    west: FromQuery[float | None] = None,
    east: FromQuery[float | None] = None,
    status: FromQuery[Status | None] = None,
    limit: FromQuery[int] = 20,
    cursor: FromQuery[str | None] = None,
) -> Page:
    """Return the listings that match all filters, newest first."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if name != "request"}
    wanted = convert(given, Search)
    visible: Sequence[Status] = _visible(request)
    statuses = [one for one in visible if wanted.status in {None, one}]
    async with request.backend.database.connection() as conn:
        return await _store.search(conn, wanted, statuses)


def _visible(request: StrictRequest) -> Sequence[Status]:
    return STATUSES if has_service_token(request) else PUBLIC_STATUSES

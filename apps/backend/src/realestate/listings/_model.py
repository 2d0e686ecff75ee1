"""A listing in requests and responses."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal, get_args
from uuid import UUID

import msgspec
from msgspec import Meta

from realestate.requests import Line, OptionalLine, Prose

ListingType = Literal["apartment", "house", "land", "commercial"]
Status = Literal["draft", "submitted", "under_review", "approved", "rejected", "published", "archived"]
Amount = Annotated[int, Meta(ge=0, le=10**15, description="Whole units of the currency.")]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}(?![\s\S])", description="ISO 4217 code.")]
Rooms = Annotated[int, Meta(ge=0, le=100)]
Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]

STATUSES: Final[tuple[Status, ...]] = get_args(Status)
PUBLIC_STATUSES: Final[tuple[Status, ...]] = ("published",)


class Draft(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A listing as it is submitted."""

    title: Line
    type: ListingType
    price_amount: Amount
    price_currency: Currency = "RWF"
    description: Prose = ""
    bedrooms: Rooms | None = None
    bathrooms: Rooms | None = None
    address_text: OptionalLine = ""
    lat: Latitude | None = None
    lng: Longitude | None = None
    status: Literal["draft", "submitted"] = "submitted"


class Listing(msgspec.Struct, kw_only=True):
    """A listing as it is stored."""

    id: UUID
    title: str
    description: str
    type: ListingType
    price_amount: int
    price_currency: str
    bedrooms: int | None
    bathrooms: int | None
    address_text: str
    lat: float | None
    lng: float | None
    status: Status
    created_at: datetime


class Search(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Filters of a search; None does not filter."""

    type: ListingType | None = None
    text: Line | None = None
    price_min: Amount | None = None
    price_max: Amount | None = None
    currency: Currency | None = None
    bedrooms_min: Rooms | None = None
    south: Latitude | None = None
    north: Latitude | None = None
    west: Longitude | None = None
    east: Longitude | None = None
    status: Status | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    cursor: Annotated[str, Meta(max_length=200)] | None = None


class Page(msgspec.Struct):
    """A page of listings, newest first, and the cursor of the next page."""

    listings: list[Listing]
    next_cursor: str | None = None

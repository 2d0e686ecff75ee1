"""listing.validate, listing.dedupe and listing.search: for agents, before they submit a listing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from realestate import listings
from realestate.errors import Problem
from realestate.listings import STATUSES, Draft, Search, check_draft, find_problems
from realestate.tools._tool import Result, Tool

if TYPE_CHECKING:
    from psycopg import AsyncConnection

# About 200 m: entrances of one building are closer, other buildings of a street often are not.
_NEAR_DEGREES: Final = 0.002
_MIN_COSINE: Final = 0.01  # near the poles a degree of longitude is very short
_SIMILAR_PRICE: Final = 0.05
_DUPLICATE_SCORE: Final = 0.5


class ValidateArguments(msgspec.Struct, forbid_unknown_fields=True):
    """A listing in any state."""

    listing: dict[str, Any]


class Verdict(msgspec.Struct):
    """Whether a listing could be submitted, and everything that is wrong with it."""

    valid: bool
    problems: list[Problem]


class DedupeArguments(msgspec.Struct, forbid_unknown_fields=True):
    """A valid listing."""

    listing: Draft


class Duplicate(msgspec.Struct):
    """A listing that is probably the same property, with the reasons and their weight (0 to 1)."""

    id: UUID
    title: str
    status: str
    score: float
    reasons: list[str]


async def validate(_conn: AsyncConnection[Any], arguments: ValidateArguments) -> Result:
    """Return everything that is wrong with a listing; the call itself is ok."""
    problems = find_problems(arguments.listing)
    return Result(value=Verdict(valid=not problems, problems=problems), audit={"problems": len(problems)})


async def dedupe(conn: AsyncConnection[Any], arguments: DedupeArguments) -> Result:
    """Return listings that are probably the same property, the most similar first."""
    check_draft(arguments.listing)
    candidates = await listings.find_candidates(conn, arguments.listing, _box_around(arguments.listing))
    scored = [_score(arguments.listing, candidate) for candidate in candidates]
    duplicates = sorted(
        (one for one in scored if one.score >= _DUPLICATE_SCORE), key=lambda one: one.score, reverse=True
    )
    return Result(value={"duplicates": duplicates}, audit={"duplicates": len(duplicates)})


async def search(conn: AsyncConnection[Any], arguments: Search) -> Result:
    """Search like GET /api/listings/search, across all statuses."""
    statuses = [one for one in STATUSES if arguments.status in {None, one}]
    page = await listings.search(conn, arguments, statuses)
    return Result(value=page, audit={"found": len(page.listings)})


def _box_around(draft: Draft) -> dict[str, float | None]:
    if draft.lat is None or draft.lng is None:
        return dict.fromkeys(("south", "north", "west", "east"))
    width = _NEAR_DEGREES / max(math.cos(math.radians(draft.lat)), _MIN_COSINE)
    return {
        "south": draft.lat - _NEAR_DEGREES,
        "north": draft.lat + _NEAR_DEGREES,
        "west": draft.lng - width,
        "east": draft.lng + width,
    }


def _score(draft: Draft, other: dict[str, Any]) -> Duplicate:
    box = _box_around(draft)
    signs = {
        "title": (0.5, _plain(draft.title) == _plain(other["title"])),
        "place": (0.3, _is_inside(box, other["lat"], other["lng"])),
        "price": (
            0.1,
            abs(draft.price_amount - other["price_amount"]) <= draft.price_amount * _SIMILAR_PRICE,
        ),
        "bedrooms": (0.1, draft.bedrooms is not None and draft.bedrooms == other["bedrooms"]),
    }
    return Duplicate(
        id=other["id"],
        title=other["title"],
        status=other["status"],
        score=round(sum(weight for weight, holds in signs.values() if holds), 2),
        reasons=[reason for reason, (_, holds) in signs.items() if holds],
    )


def _is_inside(box: dict[str, float | None], lat: float | None, lng: float | None) -> bool:
    south, north, west, east = (box[side] for side in ("south", "north", "west", "east"))
    if south is None or north is None or west is None or east is None or lat is None or lng is None:
        return False
    return south <= lat <= north and west <= lng <= east


def _plain(title: str) -> str:
    return " ".join(title.casefold().split())


TOOLS: Final = (
    Tool(name="listing.validate", arguments=ValidateArguments, run=validate),
    Tool(name="listing.dedupe", arguments=DedupeArguments, run=dedupe),
    Tool(name="listing.search", arguments=Search, run=search),
)

"""admin.review-queue and admin.decision: review and publish listings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from realestate import listings
from realestate.errors import ApiError
from realestate.requests import Line
from realestate.tools._tool import Result, Tool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import AsyncConnection

    from realestate.listings import Status

Decision = Literal["submit", "review", "approve", "reject", "publish", "archive"]

# By decision: the new status, and the statuses in which it is allowed.
_MOVES: Final[Mapping[Decision, tuple[Status, frozenset[Status]]]] = {
    "submit": ("submitted", frozenset({"draft"})),
    "review": ("under_review", frozenset({"submitted"})),
    "approve": ("approved", frozenset({"submitted", "under_review"})),
    "reject": ("rejected", frozenset({"submitted", "under_review"})),
    "publish": ("published", frozenset({"approved"})),
    "archive": ("archived", frozenset({"draft", "approved", "rejected", "published"})),
}


class QueueArguments(msgspec.Struct, forbid_unknown_fields=True):
    """Page size of the queue."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20


class DecisionArguments(msgspec.Struct, forbid_unknown_fields=True):
    """A decision on a listing; a rejection needs a reason."""

    listing_id: UUID
    decision: Decision
    reason: Line | None = None


class Decided(msgspec.Struct):
    """The status of the listing; `changed` is false if it had that status before."""

    listing_id: UUID
    status: str
    changed: bool


async def review_queue(conn: AsyncConnection[Any], arguments: QueueArguments) -> Result:
    """Return the listings that wait for a decision, the oldest first."""
    waiting = await listings.review_queue(conn, arguments.limit)
    return Result(value={"listings": waiting}, audit={"waiting": len(waiting)})


async def decide(conn: AsyncConnection[Any], arguments: DecisionArguments) -> Result:
    """Change the status of a listing; a repeated decision changes nothing.

    Raises:
        ApiError: 404: no such listing; 409: not allowed in its status; 400: a rejection without a reason.
    """
    target, allowed = _MOVES[arguments.decision]
    if arguments.decision == "reject" and arguments.reason is None:
        raise ApiError(
            400, "reason_required", "A rejection needs a reason for the person who submitted the listing."
        )
    status = await listings.lock_status(conn, arguments.listing_id)
    if status is None:
        raise ApiError(404, "unknown_listing", "This listing does not exist.")
    if status != target:
        if status not in allowed:
            raise ApiError(
                409,
                "decision_not_allowed",
                f"{arguments.decision} is not allowed while a listing is {status}; it must be"
                f" {' or '.join(sorted(allowed))}.",
            )
        await listings.set_status(conn, arguments.listing_id, target)
    return Result(
        value=Decided(arguments.listing_id, target, changed=status != target),
        audit={
            "decision": arguments.decision,
            "from": status,
            "to": target,
            **({"reason": arguments.reason} if arguments.reason else {}),
        },
    )


TOOLS: Final = (
    Tool(name="admin.review-queue", arguments=QueueArguments, run=review_queue),
    Tool(name="admin.decision", arguments=DecisionArguments, run=decide),
)

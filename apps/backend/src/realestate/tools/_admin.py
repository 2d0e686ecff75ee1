"""admin.review-queue and admin.decision: how a listing gets from submitted to published, or does not."""

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

# Of each decision: the status it leads to, and those it may be taken in.
_MOVES: Final[Mapping[Decision, tuple[Status, frozenset[Status]]]] = {
    "submit": ("submitted", frozenset({"draft"})),
    "review": ("under_review", frozenset({"submitted"})),
    "approve": ("approved", frozenset({"submitted", "under_review"})),
    "reject": ("rejected", frozenset({"submitted", "under_review"})),
    "publish": ("published", frozenset({"approved"})),
    "archive": ("archived", frozenset({"draft", "approved", "rejected", "published"})),
}


class QueueArguments(msgspec.Struct, forbid_unknown_fields=True):
    """How much of the queue to show."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20


class DecisionArguments(msgspec.Struct, forbid_unknown_fields=True):
    """What is to become of a listing; a rejection needs its reason."""

    listing_id: UUID
    decision: Decision
    reason: Line | None = None


class Decided(msgspec.Struct):
    """Where the listing stands now; `changed` is false when it stood there before."""

    listing_id: UUID
    status: str
    changed: bool


async def review_queue(conn: AsyncConnection[Any], arguments: QueueArguments) -> Result:
    """Show what waits for a decision, the oldest first."""
    waiting = await listings.review_queue(conn, arguments.limit)
    return Result(value={"listings": waiting}, audit={"waiting": len(waiting)})


async def decide(conn: AsyncConnection[Any], arguments: DecisionArguments) -> Result:
    """Move a listing on; taking the same decision again is allowed and changes nothing.

    Raises:
        ApiError: 404: no such listing; 409: not from where it stands; 400: a rejection without a reason.
    """
    target, allowed = _MOVES[arguments.decision]
    if arguments.decision == "reject" and arguments.reason is None:
        raise ApiError(
            400, "reason_required", "A rejection needs a reason, for whoever handed the listing in."
        )
    status = await listings.lock_status(conn, arguments.listing_id)
    if status is None:
        raise ApiError(404, "unknown_listing", "There is no such listing.")
    if status != target:
        if status not in allowed:
            raise ApiError(
                409,
                "decision_not_allowed",
                f"A listing that is {status} cannot be decided on like this: {arguments.decision} needs"
                f" {' or '.join(sorted(allowed))}.",
            )
        await listings.move(conn, arguments.listing_id, target)
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

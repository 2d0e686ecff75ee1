"""Pairing codes, and the judgement of an attempt: pure functions of what the database holds.

A code has 40 bits, lives 10 minutes and allows 5 wrong attempts, so guessing over the wire is hopeless.
What is stored is its HMAC under a key that the database does not hold (derived from `SERVICE_TOKEN`): who
reads the table cannot try all codes against it, which is what a slow hash would be for.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from watchkeeper.settings import Secret

# 32 characters that nobody mistakes for another when they are read out: without 0, O, 1 and I.
ALPHABET: Final = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
CODE_LENGTH: Final = 8
VALID_FOR: Final = timedelta(minutes=10)
MOST_ATTEMPTS: Final = 5
LOCKED_FOR: Final = timedelta(minutes=15)

_KEY_PURPOSE: Final = b"realestate pairing code"
_PEER_PURPOSE: Final = "realestate pairing peer"
_PEER_DIGITS: Final = 16  # 64 bits: two peers share a name only among billions


class Outcome(enum.Enum):
    """How an attempt to confirm ended."""

    APPROVED = "approved"
    WRONG = "wrong"
    EXPIRED = "expired"
    LOCKED = "locked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A peer's pairing as it stands behind the row's lock, with the database's clock.

    Args:
        code_hash: Of the last code issued.
        requested_at: When that was.
        expires_at: When it stops being good.
        attempts: Wrong attempts that still count.
        last_attempt_at: The latest of them.
        locked_until: End of the last lock-out.
        approved_at: When the peer was last approved.
        now: The present.
    """

    code_hash: bytes
    requested_at: datetime
    expires_at: datetime
    attempts: int
    last_attempt_at: datetime | None
    locked_until: datetime | None
    approved_at: datetime | None
    now: datetime

    @property
    def locked_for(self) -> timedelta:
        """How long the peer is still locked out; 0 when it is not."""
        left = timedelta(0) if self.locked_until is None else self.locked_until - self.now
        return max(left, timedelta(0))

    @property
    def counting_attempts(self) -> int:
        """Wrong attempts that still count: a quiet quarter of an hour wipes them out, a new code does not."""
        if self.last_attempt_at is None or self.now - self.last_attempt_at >= LOCKED_FOR:
            return 0
        return self.attempts


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What an attempt comes to.

    Args:
        outcome: How it ended.
        attempts: Wrong attempts from now on.
        locked_until: End of the lock-out that this attempt caused, if it did.
    """

    outcome: Outcome
    attempts: int = 0
    locked_until: datetime | None = None


def make_code() -> str:
    """Return a new code from the system's randomness."""
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))


def hash_code(token: Secret, channel: str, peer_id: str, code: str) -> bytes:
    """Return what is stored of a code; it is good for this peer only.

    Args:
        token: The service's token, which the key is derived from: a new token voids pending codes.
        channel: The peer's channel.
        peer_id: The peer.
        code: As it was shown, or as somebody typed it: case, blanks and hyphens do not matter.
    """
    key = hmac.new(token.reveal().encode("utf-8", "surrogateescape"), _KEY_PURPOSE, hashlib.sha256).digest()
    plain = code.upper().replace(" ", "").replace("-", "")
    # Neither of the first two can hold a NUL, so the three cannot be shifted against each other.
    return hmac.new(key, f"{channel}\0{peer_id}\0{plain}".encode(), hashlib.sha256).digest()


def name_peer(token: Secret, channel: str, peer_id: str) -> str:
    """Return a name that stays the same for a peer and says nothing of it to who lacks the token.

    It is for what is kept for ever. One HMAC under the token itself, so that a shell can repeat it.

    Args:
        token: The service's token: under a new one the peer has another name.
        channel: The peer's channel; it is told.
        peer_id: The peer; it is not.
    """
    key = token.reveal().encode("utf-8", "surrogateescape")
    digest = hmac.new(key, f"{_PEER_PURPOSE}\0{channel}\0{peer_id}".encode(), hashlib.sha256).hexdigest()
    return f"{channel}:{digest[:_PEER_DIGITS]}"


def judge(pair: Pair | None, given: bytes) -> Judgement:
    """Decide on an attempt.

    The comparison is made in every case, in constant time: neither the answer's time nor its text tells a
    peer without a code from one with another code.

    Args:
        pair: The peer's pairing; None when it never asked for one.
        given: Hash of the code that was typed.
    """
    matches = hmac.compare_digest(pair.code_hash if pair else bytes(len(given)), given)
    if pair is None:
        return Judgement(outcome=Outcome.WRONG)
    if pair.locked_for:
        return Judgement(outcome=Outcome.LOCKED, attempts=pair.attempts, locked_until=pair.locked_until)
    if pair.now >= pair.expires_at:
        return Judgement(outcome=Outcome.EXPIRED, attempts=pair.attempts)
    if matches:
        return Judgement(outcome=Outcome.APPROVED)
    attempts = pair.counting_attempts + 1
    locked_until = pair.now + LOCKED_FOR if attempts >= MOST_ATTEMPTS else None
    return Judgement(outcome=Outcome.WRONG, attempts=attempts, locked_until=locked_until)

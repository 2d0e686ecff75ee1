"""Pairing codes, and the decision on an attempt: pure functions of what the database holds.

A code has 40 bits, is valid for 10 minutes and allows 5 wrong attempts, which rules out guessing over the
network. The table stores its HMAC under a key derived from `SERVICE_TOKEN`: a reader of the table cannot try
all codes, so no slow hash is needed.
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

# 32 characters that are easy to tell apart when read out: without 0, O, 1 and I.
ALPHABET: Final = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
CODE_LENGTH: Final = 8
VALID_FOR: Final = timedelta(minutes=10)
MAX_ATTEMPTS: Final = 5
LOCKED_FOR: Final = timedelta(minutes=15)

_KEY_PURPOSE: Final = b"realestate pairing code"
_PEER_PURPOSE: Final = "realestate pairing peer"
_PEER_DIGITS: Final = 16  # 64 bits: a collision needs billions of peers


class Outcome(enum.Enum):
    """The result of an attempt to confirm."""

    APPROVED = "approved"
    WRONG = "wrong"
    EXPIRED = "expired"
    LOCKED = "locked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A peer's pairing, read under the row lock; `now` is the database's clock."""

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
        """How long the peer is still locked out; 0 if it is not."""
        left = timedelta(0) if self.locked_until is None else self.locked_until - self.now
        return max(left, timedelta(0))

    @property
    def counting_attempts(self) -> int:
        """Wrong attempts that still count: 15 minutes without one reset the count, a new code does not."""
        if self.last_attempt_at is None or self.now - self.last_attempt_at >= LOCKED_FOR:
            return 0
        return self.attempts


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The result of an attempt, the new number of wrong attempts, and the end of any lock-out."""

    outcome: Outcome
    attempts: int = 0
    locked_until: datetime | None = None


def make_code() -> str:
    """Return a new random code."""
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))


def hash_code(token: Secret, channel: str, peer_id: str, code: str) -> bytes:
    """Return the hash of a code as shown or typed: case, blanks and hyphens do not matter.

    It is valid for this peer only. Its key is derived from the service's token: a new one voids all codes.
    """
    key = hmac.new(token.reveal().encode("utf-8", "surrogateescape"), _KEY_PURPOSE, hashlib.sha256).digest()
    plain = code.upper().replace(" ", "").replace("-", "")
    # Channel and peer hold no NUL, so the concatenation is unambiguous.
    return hmac.new(key, f"{channel}\0{peer_id}\0{plain}".encode(), hashlib.sha256).digest()


def pseudonym(token: Secret, channel: str, peer_id: str) -> str:
    """Return a stable pseudonym of a peer for the audit log; only the token's holder can resolve it.

    It is one HMAC under the token itself, so that a shell can compute it. Under a new token it changes.
    """
    key = token.reveal().encode("utf-8", "surrogateescape")
    digest = hmac.new(key, f"{_PEER_PURPOSE}\0{channel}\0{peer_id}".encode(), hashlib.sha256).hexdigest()
    return f"{channel}:{digest[:_PEER_DIGITS]}"


def decide(pair: Pair | None, given: bytes) -> Decision:
    """Decide on an attempt; `pair` is None if the peer never requested a code.

    The hashes are always compared, in constant time: neither the time nor the text of the response tells a
    peer without a code from a wrong code.
    """
    matches = hmac.compare_digest(pair.code_hash if pair else bytes(len(given)), given)
    if pair is None:
        return Decision(outcome=Outcome.WRONG)
    if pair.locked_for:
        return Decision(outcome=Outcome.LOCKED, attempts=pair.attempts, locked_until=pair.locked_until)
    if pair.now >= pair.expires_at:
        return Decision(outcome=Outcome.EXPIRED, attempts=pair.attempts)
    if matches:
        return Decision(outcome=Outcome.APPROVED)
    attempts = pair.counting_attempts + 1
    locked_until = pair.now + LOCKED_FOR if attempts >= MAX_ATTEMPTS else None
    return Decision(outcome=Outcome.WRONG, attempts=attempts, locked_until=locked_until)

"""The signature of a webhook: HMAC-SHA256 over the timestamp's bytes followed by the raw body.

The two are joined without a separator, as the contract has it. That is unambiguous: a timestamp is digits
only, and a body that is accepted is a JSON object, which no digit can begin.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import TYPE_CHECKING, Final

from realestate.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from watchkeeper.settings import Secret

TIMESTAMP_HEADER: Final = "X-Webhook-Timestamp"
SIGNATURE_HEADER: Final = "X-Webhook-Signature"
REPLAY_WINDOW_S: Final = 300

_SCHEME: Final = "sha256="
_LONGEST_TIMESTAMP: Final = 12  # digits; int() must not be asked for more


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Return the value of `X-Webhook-Signature` for a body sent at `timestamp`."""
    return (
        _SCHEME
        + hmac.new(
            secret.encode("utf-8", "surrogateescape"), timestamp.encode() + body, hashlib.sha256
        ).hexdigest()
    )


def check_timestamp(timestamp: str | None, *, now: float | None = None) -> str:
    """Return the timestamp if it is within the replay window, before or after now.

    Args:
        timestamp: What the header says: seconds since 1970, digits only.
        now: The present; default the clock.

    Raises:
        ApiError: 401: it is missing, unreadable or too far away.
    """
    if timestamp is None:
        raise _refused("missing_timestamp", f"{TIMESTAMP_HEADER} is missing: send seconds since 1970.")
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > _LONGEST_TIMESTAMP:
        raise _refused("bad_timestamp", f"{TIMESTAMP_HEADER} takes seconds since 1970, in digits.")
    if abs((time.time() if now is None else now) - int(timestamp)) > REPLAY_WINDOW_S:
        raise _refused(
            "stale_timestamp",
            f"{TIMESTAMP_HEADER} is more than {REPLAY_WINDOW_S} seconds away from the clock of this server.",
        )
    return timestamp


def check_signature(secrets: Iterable[Secret], timestamp: str, body: bytes, signature: str | None) -> None:
    """Accept a signature that one of the source's secrets made.

    All secrets are tried, each compared in constant time, so that the time tells neither how much of a
    forgery is right nor which secret is in use.

    Args:
        secrets: The source's secrets: one, or two while it rotates them.
        timestamp: The timestamp as it was sent.
        body: The raw body as it arrived.
        signature: What the header says.

    Raises:
        ApiError: 401: it is missing or wrong.
    """
    if signature is None:
        raise _refused("missing_signature", f"{SIGNATURE_HEADER} is missing: send {_SCHEME}<hex>.")
    # A header may carry any byte; compare_digest takes only ASCII as str.
    given = signature.encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(sign(one.reveal(), timestamp, body).encode(), given) for one in secrets]
    if not any(matches):
        raise _refused("bad_signature", f"{SIGNATURE_HEADER} does not fit this body, timestamp and source.")


def _refused(code: str, message: str) -> ApiError:
    return ApiError(401, code, message)

"""Webhook signatures: HMAC-SHA256 over the bytes of the timestamp followed by the raw body.

The contract joins the two without a separator. That is unambiguous: a timestamp is digits only, and an
accepted body is a JSON object, which does not begin with a digit.
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
_MAX_TIMESTAMP_LENGTH: Final = 12  # digits; int() is slow with more


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Return the value of `X-Webhook-Signature` for a body sent at `timestamp`."""
    return (
        _SCHEME
        + hmac.new(
            secret.encode("utf-8", "surrogateescape"), timestamp.encode() + body, hashlib.sha256
        ).hexdigest()
    )


def check_timestamp(timestamp: str | None, *, now: float | None = None) -> str:
    """Return the timestamp (seconds since 1970) if it is within the replay window around `now`.

    Raises:
        ApiError: 401: it is missing, malformed or outside the window.
    """
    if timestamp is None:
        raise _refused("missing_timestamp", f"{TIMESTAMP_HEADER} is missing: send seconds since 1970.")
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > _MAX_TIMESTAMP_LENGTH:
        raise _refused("bad_timestamp", f"{TIMESTAMP_HEADER} takes seconds since 1970, in digits.")
    if abs((time.time() if now is None else now) - int(timestamp)) > REPLAY_WINDOW_S:
        raise _refused(
            "stale_timestamp",
            f"{TIMESTAMP_HEADER} is more than {REPLAY_WINDOW_S} seconds away from the clock of this server.",
        )
    return timestamp


def check_signature(secrets: Iterable[Secret], timestamp: str, body: bytes, signature: str | None) -> None:
    """Check that one of the source's secrets made the signature of this timestamp and raw body.

    All secrets are tried, in constant time: the time reveals neither how much of a forgery is right nor which
    secret is in use.

    Raises:
        ApiError: 401: the signature is missing or wrong.
    """
    if signature is None:
        raise _refused("missing_signature", f"{SIGNATURE_HEADER} is missing: send {_SCHEME}<hex>.")
    # A header may carry any byte; compare_digest takes only ASCII as str.
    given = signature.encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(sign(one.reveal(), timestamp, body).encode(), given) for one in secrets]
    if not any(matches):
        raise _refused("bad_signature", f"{SIGNATURE_HEADER} does not match this body, timestamp and source.")


def _refused(code: str, message: str) -> ApiError:
    return ApiError(401, code, message)

"""The one shape of an error response, for the library and for the services that use it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def error_body(
    status: int,
    code: str | None = None,
    message: str | None = None,
    request_id: str = "",
    details: Mapping[str, Any] | Sequence[Any] | None = None,
) -> bytes:
    """Return `{"error":{"code","message","requestId"[,"details"]}}` as JSON.

    Args:
        status: Of the response; gives the default for `code` and `message`.
        code: What a program looks at, in snake case.
        message: What a person reads: what is wrong and how to mend it.
        request_id: By which the lines of the request are found.
        details: More that a program can use, such as the fields that were refused.
    """
    error: dict[str, Any] = {
        "code": _phrase(status).lower().replace(" ", "_").replace("-", "_") if code is None else code,
        "message": f"{_phrase(status)}." if message is None else message,
        "requestId": request_id,
    }
    if details is not None:
        error["details"] = details
    return msgspec.json.encode({"error": error})


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"

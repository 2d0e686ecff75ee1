"""The error body of the library's own responses, and of the services that use it."""

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
        status: Status of the response; supplies the defaults for `code` and `message`.
        code: Machine-readable reason, in snake case.
        message: Human-readable message: what is wrong and how to fix it.
        request_id: Id to look up the request's log lines.
        details: Further data for programs, such as the invalid fields.
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

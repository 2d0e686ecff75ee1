"""What a refused or failed request gets: one error body, whatever went wrong, and nothing of the inside.

`{"error": {"code", "message", "requestId", "details"?}}`; the request id names the line in the log.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import ResponseSpec

from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.http import error_body
from watchkeeper.logs import current_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar import Request

CLIENT_LEFT: Final = 499  # nginx's number for it; there is no official one
_RETRY_AFTER_S: Final = 2  # the pool finds a database that is back within this time


class ErrorDetail(msgspec.Struct, rename="camel", omit_defaults=True):
    """What went wrong: a stable code for programs, a message for people, the id of the log line."""

    code: str
    message: str
    request_id: str
    details: Any = None


class ErrorBody(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is refused or cannot be carried out, with the answer it gets.

    Args:
        status: HTTP status.
        code: Stable name of the reason, for programs.
        message: The reason and what to do, for people; shown to the caller.
        details: More about it, as JSON; shown to the caller.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.headers = dict(headers or {})


class ClientLeftError(ApiError):
    """The client went away before its request had arrived; nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(
            CLIENT_LEFT, "client_left", "The connection was closed before the whole request had arrived."
        )


def to_api_error(error: Exception) -> ApiError:
    """Say what the caller is told about `error`; anything that is not expected becomes a bare 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DatabaseUnavailableError):
        return ApiError(
            503,
            "database_unavailable",
            "The database cannot be reached now; the same request may work in a moment.",
            headers={"Retry-After": str(_RETRY_AFTER_S)},
        )
    if isinstance(error, ValidationException):
        return ApiError(400, "invalid_request", "The request is not valid.", details=error.extra or None)
    if isinstance(error, HTTPException) and error.status_code < 500:
        phrase = HTTPStatus(error.status_code).phrase
        return ApiError(
            error.status_code, phrase.lower().replace(" ", "_"), f"{phrase}.", headers=error.headers or {}
        )
    return ApiError(500, "internal_error", "Something went wrong here; the request id finds it in the log.")


def is_expected(error: Exception) -> bool:
    """Say whether `error` is an answer rather than a fault of this service."""
    return to_api_error(error).status != HTTPStatus.INTERNAL_SERVER_ERROR


def answer_error(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Turn an exception of a handler into the one error body."""
    told = to_api_error(error)
    context = current_request()
    body = error_body(
        told.status, told.code, told.message, context.request_id if context else "", told.details
    )
    return Response(body, status_code=told.status, media_type="application/json", headers=told.headers)


def documented(*statuses: int) -> dict[int, ResponseSpec]:
    """Name the error answers of an endpoint for its OpenAPI description."""
    return {
        status: ResponseSpec(ErrorBody, generate_examples=False, description=HTTPStatus(status).phrase)
        for status in statuses
    }

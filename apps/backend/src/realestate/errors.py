"""The error response of every request that is refused or fails; it reveals no internals.

`{"error": {"code", "message", "requestId", "details"?}}`; the request id finds the line in the log.
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
    from collections.abc import Mapping, Sequence

    from litestar import Request

CLIENT_LEFT: Final = 499  # nginx's status; there is no official one
_RETRY_AFTER_S: Final = 2  # the pool reconnects within this time


class Problem(msgspec.Struct):
    """What is wrong with one field of a request; an empty field means the whole request."""

    field: str
    message: str


class ErrorDetail(msgspec.Struct, rename="camel", omit_defaults=True):
    """A stable code for programs, a message for people, and the id of the log line."""

    code: str
    message: str
    request_id: str
    details: list[Problem] = []


class ErrorBody(msgspec.Struct):
    """The body of every response that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is refused or cannot be carried out, and its response.

    Args:
        status: HTTP status.
        code: Stable reason for programs.
        message: Reason and fix for people; sent to the caller.
        problems: Problems of single fields; sent to the caller as `details`.
        headers: Additional headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        problems: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.problems = tuple(problems)
        self.headers = dict(headers or {})


class ClientLeftError(ApiError):
    """The client disconnected before its request had arrived; no one reads the response."""

    def __init__(self) -> None:
        super().__init__(
            CLIENT_LEFT, "client_left", "The connection was closed before the whole request had arrived."
        )


def to_api_error(error: Exception) -> ApiError:
    """Return the response for `error`; an unexpected error becomes a bare 500."""
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
        return ApiError(400, "invalid_request", "The request is not valid.", problems=_problems(error))
    if isinstance(error, HTTPException) and error.status_code < 500:
        phrase = HTTPStatus(error.status_code).phrase
        return ApiError(
            error.status_code, phrase.lower().replace(" ", "_"), f"{phrase}.", headers=error.headers or {}
        )
    return ApiError(500, "internal_error", "Something went wrong here; the request id finds it in the log.")


def to_problem(error: msgspec.MsgspecError) -> Problem:
    """Return msgspec's message with the field separated; its text ends in "- at `$.field`"."""
    message, _, place = str(error).partition(" - at `")
    return Problem(place.rstrip("`").removeprefix("$").removeprefix("."), message)


def _problems(error: ValidationException) -> list[Problem]:
    found = error.extra if isinstance(error.extra, list) else []
    return [Problem(str(one.get("key", "")), str(one.get("message", ""))) for one in found]


def is_expected(error: Exception) -> bool:
    """Return whether `error` is a refusal rather than a failure of this service."""
    return to_api_error(error).status != HTTPStatus.INTERNAL_SERVER_ERROR


def answer_error(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Turn a handler's exception into the error response."""
    reply = to_api_error(error)
    context = current_request()
    details = [msgspec.structs.asdict(problem) for problem in reply.problems] or None
    request_id = context.request_id if context else ""
    body = error_body(reply.status, reply.code, reply.message, request_id, details)
    return Response(body, status_code=reply.status, media_type="application/json", headers=reply.headers)


def documented(*statuses: int) -> dict[int, ResponseSpec]:
    """Return the OpenAPI descriptions of an endpoint's error responses."""
    return {
        status: ResponseSpec(ErrorBody, generate_examples=False, description=HTTPStatus(status).phrase)
        for status in statuses
    }

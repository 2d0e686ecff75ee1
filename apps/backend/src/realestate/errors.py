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
    from collections.abc import Mapping, Sequence

    from litestar import Request

CLIENT_LEFT: Final = 499  # nginx's number for it; there is no official one
_RETRY_AFTER_S: Final = 2  # the pool finds a database that is back within this time


class Problem(msgspec.Struct):
    """What is wrong with one field of a request; an empty field stands for the whole."""

    field: str
    message: str


class ErrorDetail(msgspec.Struct, rename="camel", omit_defaults=True):
    """What went wrong: a stable code for programs, a message for people, the id of the log line."""

    code: str
    message: str
    request_id: str
    details: list[Problem] = []


class ErrorBody(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is refused or cannot be carried out, with the answer it gets.

    Args:
        status: HTTP status.
        code: Stable name of the reason, for programs.
        message: The reason and what to do, for people; shown to the caller.
        problems: What is wrong with which field; shown to the caller as `details`.
        headers: Further headers of the answer.
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
        return ApiError(400, "invalid_request", "The request is not valid.", problems=_problems(error))
    if isinstance(error, HTTPException) and error.status_code < 500:
        phrase = HTTPStatus(error.status_code).phrase
        return ApiError(
            error.status_code, phrase.lower().replace(" ", "_"), f"{phrase}.", headers=error.headers or {}
        )
    return ApiError(500, "internal_error", "Something went wrong here; the request id finds it in the log.")


def to_problem(error: msgspec.MsgspecError) -> Problem:
    """Return what msgspec says of a value, with the field apart: its text ends in "- at `$.field`"."""
    message, _, place = str(error).partition(" - at `")
    return Problem(place.rstrip("`").removeprefix("$").removeprefix("."), message)


def _problems(error: ValidationException) -> list[Problem]:
    found = error.extra if isinstance(error.extra, list) else []
    return [Problem(str(one.get("key", "")), str(one.get("message", ""))) for one in found]


def is_expected(error: Exception) -> bool:
    """Say whether `error` is an answer rather than a fault of this service."""
    return to_api_error(error).status != HTTPStatus.INTERNAL_SERVER_ERROR


def answer_error(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Turn an exception of a handler into the one error body."""
    told = to_api_error(error)
    context = current_request()
    details = [msgspec.structs.asdict(problem) for problem in told.problems] or None
    request_id = context.request_id if context else ""
    body = error_body(told.status, told.code, told.message, request_id, details)
    return Response(body, status_code=told.status, media_type="application/json", headers=told.headers)


def documented(*statuses: int) -> dict[int, ResponseSpec]:
    """Name the error answers of an endpoint for its OpenAPI description."""
    return {
        status: ResponseSpec(ErrorBody, generate_examples=False, description=HTTPStatus(status).phrase)
        for status in statuses
    }

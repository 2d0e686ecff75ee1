"""Reading requests: strict JSON, text without control characters, and the headers that name the caller."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from litestar import Request
from litestar.datastructures import State
from msgspec import Meta

from realestate.errors import ApiError, Problem, to_problem
from realestate.settings import DEFAULT_AGENT

if TYPE_CHECKING:
    from realestate.monitoring import Backend

T = TypeVar("T")

# `$` allows a final newline, and JavaScript, which OpenAPI clients use, has no `\Z`.
_END: Final = r"(?![\s\S])"
Line = Annotated[str, Meta(min_length=1, max_length=200, pattern=rf"^[^\x00-\x1f\x7f]*{_END}")]
OptionalLine = Annotated[str, Meta(max_length=500, pattern=rf"^[^\x00-\x1f\x7f]*{_END}")]
Prose = Annotated[str, Meta(max_length=10_000, pattern=rf"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*{_END}")]
Identifier = Annotated[
    str, Meta(min_length=1, max_length=128, pattern=rf"^[A-Za-z0-9][A-Za-z0-9._:-]*{_END}")
]

MAX_DEPTH: Final = 64  # levels of nesting in stored JSON

_ACTOR: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


class StrictRequest(Request[Any, Any, State]):
    """A request whose JSON is decoded strictly.

    Litestar decodes a body first and then converts it loosely ("12" passes for 12, "nan" for a number). Here
    msgspec decodes it directly into the handler's type.
    """

    async def body(self) -> bytes:
        """Return the raw body.

        Raises:
            ApiError: 400: the body is empty and the handler needs data; Litestar would not call `json`.
        """
        body = await super().body()
        if not body and self.route_handler.parsed_data_field is not None:
            raise _no_body()
        return body

    async def json(self) -> Any:
        """Return the body as the type of the handler's `data`.

        Raises:
            ApiError: 400: the body is not JSON, or not of that type.
        """
        field = self.route_handler.parsed_data_field
        return decode(await self.body(), field.annotation if field else Any)

    @property
    def backend(self) -> Backend:
        """The service behind this request."""
        backend: Backend = self.app.state.backend
        return backend

    def header(self, name: str, *, refusal: int = 400) -> str | None:
        """Return the value of a header, or None.

        Args:
            name: Name of the header.
            refusal: Status of the response if it is sent twice; 401 for headers that authenticate the sender.

        Raises:
            ApiError: The header is sent twice: a proxy and this service could each read another value.
        """
        values = self.headers.getall(name, [])
        if len(values) > 1:
            raise ApiError(refusal, "duplicate_header", f"{name} is sent more than once: send it once.")
        return values[0] if values else None

    @property
    def agent(self) -> str:
        """The acting agent, from `X-Agent-Id`; default the gateway's own agent.

        Raises:
            ApiError: 400: the header is not usable as a name in the audit log, or is sent twice.
        """
        given = self.header("X-Agent-Id")
        if given is None:
            return DEFAULT_AGENT
        if not _ACTOR.fullmatch(given):
            raise ApiError(
                400,
                "invalid_agent_id",
                "X-Agent-Id takes 1 to 128 letters, digits and . _ : -, starting with a letter or digit.",
            )
        return given

    @property
    def idempotency_key(self) -> str | None:
        """The value of `Idempotency-Key`, or None.

        Raises:
            ApiError: 400: it is empty, too long, not visible ASCII, or sent twice.
        """
        given = self.header("Idempotency-Key")
        if given is not None and not _KEY.fullmatch(given):
            raise ApiError(
                400, "invalid_idempotency_key", "Idempotency-Key takes 1 to 255 visible ASCII characters."
            )
        return given


def decode(body: bytes, wanted: type[T] | Any) -> T:
    """Decode JSON strictly: no coercion, no NaN, no trailing data, and limited nesting.

    Raises:
        ApiError: 400: the body is empty, not JSON, or not of the type `wanted`.
    """
    if not body:
        raise _no_body()
    try:
        decoded: T = msgspec.json.decode(body, type=wanted)
    except msgspec.ValidationError as error:
        raise ApiError(
            400, "invalid_request", "The body is not valid.", problems=[to_problem(error)]
        ) from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "The body is nested too deeply.") from None
    except ValueError as error:  # msgspec's DecodeError, and UnicodeDecodeError out of a string
        raise ApiError(
            400, "invalid_json", "The body is not JSON.", problems=[Problem("", str(error))]
        ) from None
    return decoded


def convert(value: object, wanted: type[T]) -> T:
    """Convert what `decode` returned, or query parameters, into a struct, as strictly.

    Raises:
        ApiError: 400: the value does not have that type.
    """
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise ApiError(
            400, "invalid_request", "The request is not valid.", problems=[to_problem(error)]
        ) from None


def check_storable(value: object) -> None:
    """Check that PostgreSQL's jsonb can store the JSON: no NUL in strings or keys, and limited nesting.

    Raises:
        ApiError: 400: it cannot.
    """
    level: list[Any] = [value]
    for _depth in range(MAX_DEPTH):
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if "\x00" in one:
                    raise ApiError(400, "invalid_request", "The body holds a NUL character (\\u0000).")
            elif isinstance(one, dict):
                below += one
                below += one.values()
            elif isinstance(one, list):
                below += one
        if not below:
            return
        level = below
    raise ApiError(400, "invalid_request", f"The body is nested deeper than {MAX_DEPTH} levels.")


def _no_body() -> ApiError:
    return ApiError(400, "invalid_json", "The body is empty: send a JSON object.")

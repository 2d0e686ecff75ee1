"""What comes in: strict JSON, text that stays on its line, and the headers that name the caller."""

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

# `$` would let a final newline through and JavaScript knows no `\Z`: OpenAPI clients read these patterns too.
_END: Final = r"(?![\s\S])"
Line = Annotated[str, Meta(min_length=1, max_length=200, pattern=rf"^[^\x00-\x1f\x7f]*{_END}")]
OptionalLine = Annotated[str, Meta(max_length=500, pattern=rf"^[^\x00-\x1f\x7f]*{_END}")]
Prose = Annotated[str, Meta(max_length=10_000, pattern=rf"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*{_END}")]
Identifier = Annotated[
    str, Meta(min_length=1, max_length=128, pattern=rf"^[A-Za-z0-9][A-Za-z0-9._:-]*{_END}")
]

DEEPEST: Final = 64  # levels of nesting in JSON that is kept

_ACTOR: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


class StrictRequest(Request[Any, Any, State]):
    """A request whose JSON is taken as it stands.

    Litestar reads a body loosely ("12" passes for 12, "nan" for a number) and then converts it; here msgspec
    decodes straight into the handler's type.
    """

    async def body(self) -> bytes:
        """Return the raw body.

        Litestar asks for no JSON when there is no body, and complains in words of its own.

        Raises:
            ApiError: 400: it is empty, and the handler has to have data.
        """
        body = await super().body()
        if not body and self.route_handler.parsed_data_field is not None:
            raise _no_body()
        return body

    async def json(self) -> Any:
        """Return the body as the type of the handler's `data`.

        Raises:
            ApiError: 400: it is not JSON, or not of that type.
        """
        field = self.route_handler.parsed_data_field
        return decode(await self.body(), field.annotation if field else Any)

    @property
    def backend(self) -> Backend:
        """The service behind this request."""
        backend: Backend = self.app.state.backend
        return backend

    def header(self, name: str, *, refusal: int = 400) -> str | None:
        """Return a header's value, None without it.

        Args:
            name: Of the header.
            refusal: Status of the answer when it is there twice: 401 for what proves who the sender is.

        Raises:
            ApiError: It is there more than once: a proxy and this service could each take another one.
        """
        values = self.headers.getall(name, [])
        if len(values) > 1:
            raise ApiError(refusal, "duplicate_header", f"{name} is there more than once: send it once.")
        return values[0] if values else None

    @property
    def agent(self) -> str:
        """Who acts, by `X-Agent-Id`; default the gateway's own agent.

        Raises:
            ApiError: 400: the header is not usable as a name in the audit log, or is there twice.
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
        """What `Idempotency-Key` says, None without it.

        Raises:
            ApiError: 400: it is empty, too long, not visible ASCII, or there twice.
        """
        given = self.header("Idempotency-Key")
        if given is not None and not _KEY.fullmatch(given):
            raise ApiError(
                400, "invalid_idempotency_key", "Idempotency-Key takes 1 to 255 visible ASCII characters."
            )
        return given


def decode(body: bytes, wanted: type[T] | Any) -> T:
    """Read JSON strictly: no coercion, no NaN, nothing after the end, and no nesting without end.

    Args:
        body: The raw body.
        wanted: The type it must have.

    Raises:
        ApiError: 400: it is empty, not JSON, or not of that type.
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
        ApiError: 400: it does not have that type.
    """
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise ApiError(
            400, "invalid_request", "The request is not valid.", problems=[to_problem(error)]
        ) from None


def check_storable(value: object) -> None:
    """Accept JSON that PostgreSQL's jsonb takes: no NUL in any string or key, and not too deep.

    Raises:
        ApiError: 400: it does not.
    """
    level: list[Any] = [value]
    for _depth in range(DEEPEST):
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
    raise ApiError(400, "invalid_request", f"The body is nested deeper than {DEEPEST} levels.")


def _no_body() -> ApiError:
    return ApiError(400, "invalid_json", "The body is empty: send a JSON object.")

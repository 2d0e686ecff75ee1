import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realestate.errors import ApiError
from realestate.requests import MAX_DEPTH, check_storable, convert, decode
from realestate.webhooks import read_event

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=4
        )
    ),
    max_leaves=20,
)


class Sized(msgspec.Struct):
    """A struct with a number."""

    size: int


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"size":NaN}', "invalid_json"),
        (b'{"size":1}x', "invalid_json"),
        (b'{"size":1,}', "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"size":1,"a":"\\ud800"}', "invalid_json"),
        (b'{"size":' + b"[" * 100_000, "invalid_request"),
        (b'{"a":' + b"[" * 100_000, "invalid_json"),
        (b'{"size":"1"}', "invalid_request"),
        (b'{"size":1.5}', "invalid_request"),
        (b"[]", "invalid_request"),
        (b"{}", "invalid_request"),
    ],
)
def test_what_is_not_the_wanted_json_is_400(body: bytes, code: str) -> None:
    """Malformed, wrongly typed, endless and unexpected bodies are the sender's fault."""
    wanted = Sized if code == "invalid_request" else dict[str, Any]
    with pytest.raises(ApiError, match="body") as caught:
        decode(body, wanted)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_problem_names_the_field() -> None:
    """The field is separate from the message; decoded values are not coerced either."""
    with pytest.raises(ApiError, match="not valid"):
        convert({"size": "1"}, Sized)
    with pytest.raises(ApiError, match="not valid") as caught:
        decode(b'{"size":"1"}', Sized)
    [problem] = caught.value.problems
    assert (problem.field, problem.message) == ("size", "Expected `int`, got `str`")


@given(JSON)
def test_ordinary_json_can_be_stored(value: Any) -> None:
    """Any JSON without a NUL can be."""
    check_storable(value)


@pytest.mark.parametrize("value", ["\0", ["a\0"], {"\0": 1}, {"a": [{"b": "x\0y"}]}])
def test_nul_is_refused_wherever_it_is(value: object) -> None:
    """PostgreSQL's jsonb holds no NUL, neither in a string nor in a key."""
    with pytest.raises(ApiError, match="NUL character"):
        check_storable(value)


def test_nesting_is_bounded() -> None:
    """Nesting up to the limit is accepted, beyond it refused."""
    deepest: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deepest = [deepest]
    check_storable(deepest)
    with pytest.raises(ApiError, match="deeper than 64 levels"):
        check_storable([deepest])


@pytest.mark.parametrize(
    "event",
    [
        {},
        *({"id": wrong} for wrong in ("", 5, None, "x" * 201, "line\nbreak")),
        {"id": "1", "channel": "fax", "peer_id": "2"},
        {"id": "1", "channel": "telegram"},
        {"id": "1", "peer_id": "2"},
        {"id": "1", "type": 7},
        {"id": "1", "agent_id": "no blanks please"},
        {"id": "1", "data": "\0"},
    ],
)
def test_event_that_cannot_be_stored_is_400(event: dict[str, Any]) -> None:
    """An event needs an id on one line, and names its session completely or not at all."""
    with pytest.raises(ApiError, match=r"valid|session together|NUL") as caught:
        read_event(json.dumps(event).encode())
    assert caught.value.status == 400


def test_event_may_carry_anything_else() -> None:
    """Unknown fields are allowed."""
    event = read_event(b'{"id":"1","more":{"deep":[1,2.5,null]},"channel":"webchat","peer_id":"p"}')
    assert (event.id, event.channel, event.peer_id) == ("1", "webchat", "p")

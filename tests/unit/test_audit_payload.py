"""Audit payloads as JSON for jsonb, and the checks of an entry's fields."""

import enum
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchkeeper import audit
from watchkeeper.audit._payload import encode_payload
from watchkeeper.exceptions import AuditError
from watchkeeper.settings import Secret


class Colour(enum.Enum):
    """An enumeration, as a service may put into a payload."""

    RED = "red\0"


@dataclass
class Point:
    """A dataclass, as a service may put into a payload."""

    x: int
    note: str


class Silent:
    """An object that does not even print."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def _decoded(payload: dict[Any, Any]) -> Any:
    return json.loads(encode_payload(payload))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(1, "a"), {"x": 1, "note": "a"}),
        (Point(1, "a\0"), {"x": 1, "note": "a\\u0000"}),
        (Colour.RED, "red\\u0000"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"ab", "YWI="),
        (Secret("hush-hush"), "Secret('***')"),
        (Silent(), "<Silent>"),
        ([Silent(), "\ud800"], ["<Silent>", "\\ud800"]),
        ([2**80, "\0"], [2**80, "\\u0000"]),
        ({(1, 2): "x"}, {"(1, 2)": "x"}),
        ({1: "x\0", None: True}, {"1": "x\\u0000", "None": True}),
        (frozenset({1.5}), [1.5]),
        pytest.param(10**5000, "<int>", id="int too long to print"),
    ],
)
def test_anything_becomes_json(value: object, expected: object) -> None:
    """Known types keep their meaning, unknown ones become text, and a secret stays masked."""
    assert _decoded({"value": value}) == {"value": expected}


def test_a_cycle_is_cut() -> None:
    """An object inside itself is cut; one that occurs twice is written twice."""
    twice = ["x"]
    payload: dict[str, Any] = {"a": twice, "b": twice}
    payload["self"] = payload
    assert _decoded(payload) == {"a": ["x"], "b": ["x"], "self": "<cycle>"}


def test_depth_is_bounded() -> None:
    """A payload that is too deep is cut instead of refused by the server."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "<too deep>" in encode_payload({"deep": deep})
    while deep:  # freed by hand: the interpreter would recurse
        deep = deep.pop()


_TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)


@given(
    st.dictionaries(
        _TEXT,
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
            lambda inner: st.lists(inner) | st.dictionaries(_TEXT | st.integers(), inner) | st.tuples(inner),
            max_leaves=5,
        ),
        max_size=3,
    )
)
def test_every_payload_is_strict_json(payload: dict[str, Any]) -> None:
    """Any payload becomes an object without NaN, NUL or a lone surrogate."""
    text = encode_payload(payload)
    decoded = json.loads(text, parse_constant=pytest.fail)
    assert isinstance(decoded, dict)
    assert "\0" not in json.dumps(decoded, ensure_ascii=False)
    text.encode()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"actor_type": "robot"}, "actor_type must be one of user, agent and system"),
        ({"actor_id": ""}, "actor_id takes text of 1 to 255 characters"),
        ({"actor_id": "x" * 256}, "actor_id takes text of 1 to 255 characters"),
        ({"actor_id": 7}, "actor_id takes text of 1 to 255 characters"),
        ({"actor_id": "a\0"}, "actor_id contains a NUL character"),
        ({"action": "Listing.create"}, "action takes 1 to 100 lower-case letters"),
        ({"action": "a" * 101}, "action takes 1 to 100 lower-case letters"),
        ({"action": "a\n"}, "action takes 1 to 100 lower-case letters"),
        ({"action": None}, "action takes 1 to 100 lower-case letters"),
        ({"entity": ""}, "entity takes text of 1 to 255 characters"),
        ({"entity_id": ""}, "entity_id takes text of 1 to 255 characters"),
        ({"entity_id": "\ud800"}, "entity_id contains a NUL character or a lone surrogate"),
        ({"payload": {"x": "y" * 300_000}}, "payload is 292 KiB of JSON, more than 256"),
    ],
)
async def test_unusable_arguments_are_refused_before_sending(fields: dict[str, Any], message: str) -> None:
    """The error names the field and the constraint; no connection is used."""
    entry: dict[str, Any] = {"actor_type": "user", "actor_id": "u", "action": "a", "entity": "e"}
    with pytest.raises(AuditError, match=message):
        await audit.append(None, **{**entry, **fields})  # type: ignore[arg-type]  # never reached

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import logging
import pathlib
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.lines import LineList, parse_line, raised, request_line
from watchkeeper.logs import Redactor
from watchkeeper.logs._logging import Logging
from watchkeeper.logs._render import MAX_LINE

REQUEST_KEYS = [
    *("level", "time", "service", "env", "type", "method", "url", "statusCode", "duration", "requestId"),
    *("route", "outcome", "trace_id", "span_id", "bytes"),
]
LOGS = Logging(service="shop", env="test")
TEXT = st.text(st.characters(categories=("L", "N", "P", "S", "Z", "Cc", "Cf", "Cs", "Co")), max_size=40)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.builds(pow, st.just(10), st.just(5000)),  # longer than Python itself would print
    st.floats(),
    TEXT,
    st.binary(max_size=40),
    st.complex_numbers(),
    st.decimals(),
    st.datetimes(),
    st.timedeltas(),
    st.uuids(),
    st.builds(object),
)
KEYS = st.one_of(
    TEXT, st.integers(), st.none(), st.binary(max_size=10), st.tuples(st.integers(), TEXT), st.floats()
)
GARBAGE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.tuples(inner, inner),
        st.dictionaries(KEYS, inner, max_size=5),
        st.frozensets(TEXT, max_size=3),
    ),
    max_leaves=8,
)


def render(**fields: object) -> dict[str, Any]:
    """Return the fields as they come out of one line of strict JSON."""
    line = LOGS.render("info", fields)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert len(line) <= MAX_LINE
    parsed = parse_line(line)
    assert list(parsed)[:4] == ["level", "time", "service", "env"]
    return parsed


@settings(max_examples=60)
@given(st.dictionaries(TEXT, GARBAGE, max_size=4))
def test_anything_is_one_line_of_strict_json(fields: dict[str, Any]) -> None:
    """Whatever the fields hold, the canonical keys are there and a strict parser accepts the line."""
    parsed = render(**fields)
    assert len(parsed) == 4 + len(fields)


@settings(max_examples=100)
@given(TEXT, TEXT, TEXT)
def test_any_request_is_one_line_of_strict_json(url: str, method: str, request_id: str) -> None:
    """Nothing that a client sends can break a request line or change its keys."""
    sink = LineList()
    Logging(service="shop", env="test", sink=sink).log_request(
        request_line(url=url, method=method, request_id=request_id)
    )
    (line,) = sink.lines
    assert line.count(b"\n") == 1
    assert list(parse_line(line)) == REQUEST_KEYS


@given(TEXT)
def test_characters_that_a_terminal_acts_on_are_escaped(text: str) -> None:
    """Control characters, ANSI escapes, line separators and direction marks."""
    line = LOGS.render("info", {"msg": text}).decode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]", line)
    assert line.count("\n") == 1
    if not re.search("[\ud800-\udfff]", text) and LOGS.redactor.text(text) == text:
        assert parse_line(line)["msg"] == text


def test_tag_character_is_escaped_as_a_surrogate_pair() -> None:
    """JSON has two escapes for a character beyond the first plane."""
    assert b'"msg":"\\udb40\\udc41"' in LOGS.render("info", {"msg": "\U000e0041"})


class _Colour(enum.Enum):
    RED = "red"


class _Level(enum.IntEnum):
    HIGH = 3


class _Point(NamedTuple):
    x: int
    token: str


@dataclasses.dataclass
class _Account:
    name: str
    password: str
    hidden: str = dataclasses.field(repr=False, default="not shown")


class _Packet(msgspec.Struct):
    size: int
    api_key: str


class _Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not the text"


class _Mapped(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        return {"a": 1, "token": 2}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("a", "token"))

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (1.5, 1.5),
        (True, True),
        (2**70, 2**70),
        (2**2000, "<int of 2001 bits>"),
        (_Level.HIGH, 3),
        (_Colour.RED, "red"),
        (b"caf\xc3\xa9\xff", "café\\xff"),
        (bytearray(b"ab"), "ab"),
        (memoryview(b"ab"), "ab"),
        ("\ud83d", "\\ud83d"),
        (_Text("text"), "text"),
        (decimal.Decimal("1.10"), "1.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (dt.datetime(2026, 1, 29, tzinfo=dt.UTC), "2026-01-29T00:00:00+00:00"),
        (dt.date(2026, 1, 29), "2026-01-29"),
        (dt.time(3, 0), "03:00:00"),
        (dt.timedelta(minutes=2), 120.0),
        (_Point(1, "t"), {"x": 1, "token": "***"}),
        (_Account("a", "p"), {"name": "a", "password": "***"}),
        (_Packet(1, "k"), {"size": 1, "api_key": "***"}),
        (_Mapped(), {"a": 1, "token": "***"}),
        ({1: "a", (2, 3): "b", None: "c", b"d": "e"}, {"1": "a", "(2, 3)": "b", "None": "c", "d": "e"}),
        ({"a"}, ["a"]),
        (frozenset(), []),
        (collections.deque([1]), "deque([1])"),
        (int, "<class 'int'>"),
        (_Account, f"<class '{__name__}._Account'>"),
        ([("accept", "json"), (b"Cookie", b"id=1")], [["accept", "json"], ["Cookie", "***"]]),
        ({"token": None, "password": True}, {"token": None, "password": True}),
    ],
)
def test_values_have_one_form_each(value: object, expected: object) -> None:
    """Each kind of value is serialized in one form."""
    assert render(value=value)["value"] == expected


class Unprintable:
    """Its repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Liar:
    """Not even its class can be asked for."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(name)


class Endless:
    """Its repr is endless."""

    def __repr__(self) -> str:
        return "x" * 10_000_000


class NotText:
    """Its repr is no text."""

    def __repr__(self) -> str:
        return 47  # type: ignore[return-value]


class Unreadable(dict[str, object]):
    """Its items cannot be read."""

    def items(self) -> Any:
        raise OSError("gone")


@pytest.mark.parametrize("kind", [Unprintable, Liar, NotText, Unreadable])
def test_object_that_raises_costs_only_its_own_field(kind: type) -> None:
    """The field names its type; the other fields are there."""
    parsed = render(before=1, value=kind(), after=2)
    assert parsed["value"] == f"<unprintable {kind.__name__}>"
    assert (parsed["before"], parsed["after"]) == (1, 2)


def test_key_that_raises_is_named_by_its_type() -> None:
    """The value is there."""
    assert render(value={Unprintable(): 1})["value"] == {"<unprintable Unprintable>": 1}


def test_huge_values_are_cut() -> None:
    """A huge text, a huge container and a deep one are cut, and the line says where."""
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    parsed = render(deep=deep, many=list(range(10_000)), endless=Endless())
    assert "too deep" in json.dumps(parsed["deep"])
    assert len(parsed["many"]) < 300
    assert "characters more" in parsed["endless"]


def test_cycle_of_containers_is_cut() -> None:
    """A cycle ends where it closes; the same object twice side by side is no cycle."""
    cycle: dict[str, object] = {}
    cycle["self"] = [cycle]
    shared = [1]
    assert render(cycle=cycle)["cycle"] == {"self": ["<dict, contains itself>"]}
    assert render(pair=[shared, shared])["pair"] == [[1], [1]]


def test_repr_that_logs_its_own_object_does_not_recurse() -> None:
    """Within a repr the object is named instead of calling its repr again."""
    lines: list[bytes] = []

    class Chatty:
        def __repr__(self) -> str:
            lines.append(LOGS.render("info", {"me": self}))
            return "chatty"

    lines.append(LOGS.render("info", {"me": Chatty()}))
    assert [parse_line(line)["me"] for line in lines] == ["<Chatty>", "chatty"]


def test_line_that_cannot_be_encoded_is_replaced() -> None:
    """It says that a line was left out, and does not raise."""
    logs = Logging(service="shop\ud800", env="test", redactor=Hollow())
    parsed = parse_line(logs.render("info", {"msg": "x"}))
    assert parsed["service"] == "shop\\ud800"
    assert parsed["msg"].startswith("A line was left out")


class Hollow(Redactor):
    """A redactor that returns what JSON cannot hold."""

    def is_harmless(self, key: str, value: object) -> bool:  # noqa: ARG002 - the signature is the base's
        return False

    def bounded(self, value: str, limit: int) -> str:  # noqa: ARG002 - the same
        raise ValueError(value)


def test_handler_does_not_raise_for_a_broken_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Logging reports it on stderr, as it does for every handler."""
    handler = LOGS._stdlib._handler
    record = logging.makeLogRecord({"msg": "x", "levelno": "high"})
    handler.handle(record)
    assert "Logging error" in capsys.readouterr().err


def test_exception_as_a_value_is_described() -> None:
    """As type, message and stack (pino prints {})."""
    error = render(error=raised(KeyError("x")))["error"]
    assert (error["type"], error["message"]) == ("KeyError", "'x'")
    assert error["stack"][-1]["function"] == "raised"

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchkeeper.http._ids import read_ids

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VALID_TRACE = re.compile(r"(?!0{32})[0-9a-f]{32}")
VALID_SPAN = re.compile(r"(?!0{16})[0-9a-f]{16}")


def test_ids_are_made_where_none_came() -> None:
    """A request without any gets valid ids, different from the next one's."""
    one, two = read_ids([]), read_ids([(b"host", b"x")])
    for ids in (one, two):
        assert VALID_ID.fullmatch(ids.request_id)
        assert VALID_TRACE.fullmatch(ids.trace_id)
        assert VALID_SPAN.fullmatch(ids.span_id)
    assert len({one.request_id, two.request_id, one.span_id, two.span_id}) == 4


def test_ids_differ_where_the_service_seeds_the_shared_generator() -> None:
    """Reproducible simulations do not make for repeated ids."""
    state = random.getstate()
    try:
        random.seed(0)
        one = read_ids([])
        random.seed(0)
        assert read_ids([]).request_id != one.request_id
    finally:
        random.setstate(state)


def test_ids_differ_in_forked_workers() -> None:
    """A server that forks its workers after the import does not have them count through the same ids."""
    script = (
        "import os; from watchkeeper.http._ids import read_ids; child = os.fork();"
        " child and os.waitpid(child, 0); print(read_ids([]).request_id, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    one, other = done.stdout.split()
    assert one != other


@pytest.mark.parametrize("sent", ["a", "0", "A.b_c-9", "x" * 128])
def test_a_valid_request_id_is_kept(sent: str) -> None:
    """What the client calls its request is what the lines call it."""
    assert read_ids([(b"x-request-id", sent.encode())]).request_id == sent


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b" a",
        b"-a",
        b".a",
        b"x" * 129,
        b"a b",
        b"a\r\nSet-Cookie: x=1",
        b"a\n",
        b"a\0",
        b"a\x1b[31m",
        b"\xc3\xa9",
        b'a"',
        b"a,b",
        b"a/b",
    ],
)
def test_an_invalid_request_id_is_replaced(sent: bytes) -> None:
    """Nothing that could break a header or a line gets through."""
    made = read_ids([(b"x-request-id", sent)]).request_id
    assert re.fullmatch("[0-9a-f]{32}", made)


def test_two_request_ids_are_none() -> None:
    """Which of them is meant, nobody can say."""
    headers = [(b"x-request-id", b"one"), (b"x-request-id", b"two")]
    assert read_ids(headers).request_id not in {"one", "two"}


def test_a_trace_is_gone_on_with() -> None:
    """The trace id stays, the span is ours, the flags and the state are passed on."""
    ids = read_ids(
        [
            (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()),
            (b"tracestate", b"rojo=00f067aa0ba902b7"),
            (b"tracestate", b"congo=t61rcWkgMzE"),
        ]
    )
    assert (ids.trace_id, ids.trace_flags) == (TRACE, "01")
    assert VALID_SPAN.fullmatch(ids.span_id)
    assert ids.span_id != SPAN
    assert ids.trace_state == "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    assert ids.request_id != TRACE


@pytest.mark.parametrize(
    ("parent", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-00", "00"),
        (f"00-{TRACE}-{SPAN}-03", "03"),
        (f"00-{TRACE}-{SPAN}-ff", "03"),
        (f"cc-{TRACE}-{SPAN}-01", "01"),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", "01"),
        (f"cc-{TRACE}-{SPAN}-01-", "01"),
    ],
)
def test_versions_and_flags_of_the_future_are_read_as_far_as_they_are_known(parent: str, flags: str) -> None:
    """https://www.w3.org/TR/trace-context/#versioning-of-traceparent."""
    ids = read_ids([(b"traceparent", parent.encode())])
    assert (ids.trace_id, ids.trace_flags) == (TRACE, flags)


@pytest.mark.parametrize(
    "parent",
    [
        "",
        TRACE,
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\r\n",
        f"cc-{TRACE}-{SPAN}-01-a\nb",
    ],
)
def test_an_invalid_parent_starts_a_trace_anew(parent: str) -> None:
    """Its state goes with it: it belongs to another trace."""
    ids = read_ids([(b"traceparent", parent.encode()), (b"tracestate", b"a=1")])
    assert ids.trace_id != TRACE
    assert VALID_TRACE.fullmatch(ids.trace_id)
    assert ids.trace_state == ""


def test_two_parents_are_none() -> None:
    """A request has one place in a trace."""
    parent = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())
    assert read_ids([parent, parent]).trace_id != TRACE


@pytest.mark.parametrize("state", [b"a=1\r\nX-Evil: 1", b"a=\x7f", b"a=\xff", b"x" * 513])
def test_a_state_that_is_no_header_value_is_dropped(state: bytes) -> None:
    """It would be written into outgoing requests as it is."""
    ids = read_ids([(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()), (b"tracestate", state)])
    assert (ids.trace_id, ids.trace_state) == (TRACE, "")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"x-request-id", b"traceparent", b"tracestate", b"host"]),
            st.binary(max_size=140),
        )
    )
)
def test_whatever_comes_the_ids_are_valid(headers: list[tuple[bytes, bytes]]) -> None:
    """Any bytes in any of the headers leave ids that are safe in a header and in a line."""
    ids = read_ids(headers)
    assert VALID_ID.fullmatch(ids.request_id)
    assert VALID_TRACE.fullmatch(ids.trace_id)
    assert VALID_SPAN.fullmatch(ids.span_id)
    assert re.fullmatch("0[0-3]", ids.trace_flags)
    assert re.fullmatch(r"[\x20-\x7e\t]{0,512}", ids.trace_state)

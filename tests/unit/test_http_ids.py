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


def test_missing_ids_are_generated() -> None:
    """Each request without ids gets valid ones of its own."""
    one, two = read_ids([]), read_ids([(b"host", b"x")])
    for ids in (one, two):
        assert VALID_ID.fullmatch(ids.request_id)
        assert VALID_TRACE.fullmatch(ids.trace_id)
        assert VALID_SPAN.fullmatch(ids.span_id)
    assert len({one.request_id, two.request_id, one.span_id, two.span_id}) == 4


def test_ids_differ_if_the_service_seeds_random() -> None:
    """A seeded shared generator does not repeat ids."""
    state = random.getstate()
    try:
        random.seed(0)
        one = read_ids([])
        random.seed(0)
        assert read_ids([]).request_id != one.request_id
    finally:
        random.setstate(state)


def test_ids_differ_in_forked_workers() -> None:
    """Workers that are forked after the import generate different ids."""
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
    """The client's id is the id in the lines."""
    assert read_ids([(b"x-request-id", sent.encode())]).request_id == sent


@pytest.mark.parametrize(
    "sent",
    [
        *(b"", b" a", b"-a", b".a", b"x" * 129, b"a b", b"a\r\nSet-Cookie: x=1", b"a\n", b"a\0"),
        *(b"a\x1b[31m", b"\xc3\xa9", b'a"', b"a,b", b"a/b"),
    ],
)
def test_an_invalid_request_id_is_replaced(sent: bytes) -> None:
    """Nothing that could break a header or a line is accepted."""
    made = read_ids([(b"x-request-id", sent)]).request_id
    assert re.fullmatch("[0-9a-f]{32}", made)


def test_duplicate_ids_are_ignored() -> None:
    """No one can know which is meant."""
    parent = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())
    ids = read_ids([parent, parent, (b"x-request-id", b"one")])
    assert ids.trace_id != TRACE
    assert ids.request_id == "one"
    headers = [(b"x-request-id", b"one"), (b"x-request-id", b"two")]
    assert read_ids(headers).request_id not in {"one", "two"}


def test_a_trace_is_continued() -> None:
    """The trace id stays, the span id is new, flags and state are passed on."""
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
def test_later_versions_and_flags_are_read_as_far_as_known(parent: str, flags: str) -> None:
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
def test_an_invalid_parent_starts_a_new_trace(parent: str) -> None:
    """Its state, which belongs to the other trace, is dropped too."""
    ids = read_ids([(b"traceparent", parent.encode()), (b"tracestate", b"a=1")])
    assert ids.trace_id != TRACE
    assert VALID_TRACE.fullmatch(ids.trace_id)
    assert ids.trace_state == ""


@pytest.mark.parametrize("state", [b"a=1\r\nX-Evil: 1", b"a=\x7f", b"a=\xff", b"x" * 513])
def test_an_invalid_state_is_dropped(state: bytes) -> None:
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
def test_ids_are_valid_for_any_headers(headers: list[tuple[bytes, bytes]]) -> None:
    """Any bytes in any of the headers give ids that are safe in a header and in a line."""
    ids = read_ids(headers)
    assert VALID_ID.fullmatch(ids.request_id)
    assert VALID_TRACE.fullmatch(ids.trace_id)
    assert VALID_SPAN.fullmatch(ids.span_id)
    assert re.fullmatch("0[0-3]", ids.trace_flags)
    assert re.fullmatch(r"[\x20-\x7e\t]{0,512}", ids.trace_state)

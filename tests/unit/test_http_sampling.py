from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.asgi import LOCAL_HOST, Watched, fetch, response_body, response_start, watch
from watchkeeper.http._sampling import RANDOM_FROM, sample_floor

KEPT = "4bf92f3577b34da6a3" + "f" * 14
DROPPED = "4bf92f3577b34da6a3" + "0" * 13 + "1"


async def _app(scope: Any, _receive: Any, send: Any) -> None:
    if scope["path"] == "/boom":
        raise ValueError("inside")
    status = int(scope["path"].removeprefix("/") or 200)
    await send(response_start(status))
    if scope["query_string"] == b"stops":
        return
    await send(response_body(b"x"))


async def _fetch(watched: Watched, trace: str, path: str = "/", **more: Any) -> None:
    parent = (b"traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode())
    await fetch(watched.app, path, headers=[LOCAL_HOST, parent], **more)


async def test_sampling_keeps_completed_requests_by_trace_id(tmp_path: Path) -> None:
    """The line has the rate, and the metrics count all requests."""
    watched = watch(_app, tmp_path, request_sample=0.25)
    for _ in range(3):
        await _fetch(watched, KEPT)
        await _fetch(watched, DROPPED)
    logged = watched.requests()
    assert [line["trace_id"] for line in logged] == [KEPT] * 3
    assert {line["sampleRate"] for line in logged} == {0.25}
    assert list(logged[0])[-1] == "sampleRate"
    assert watched.count("unmatched", 200) == 6.0


@pytest.mark.parametrize(
    ("path", "more", "outcome"),
    [("/503", {}, "completed"), ("/boom", {}, "failed"), ("/200", {"query_string": b"stops"}, "failed")],
)
async def test_sampling_keeps_every_request_that_did_not_succeed(
    tmp_path: Path, path: str, more: dict[str, Any], outcome: str
) -> None:
    """Whatever the trace id, and without a rate."""
    watched = watch(_app, tmp_path, request_sample=1e-9)
    await _fetch(watched, DROPPED, path, **more)
    (line,) = watched.requests()
    assert line["outcome"] == outcome
    assert "sampleRate" not in line


async def test_sampling_keeps_aborted_requests(tmp_path: Path) -> None:
    """499 is below 500, but no success."""

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    watched = watch(app, tmp_path, request_sample=1e-9)
    await _fetch(watched, DROPPED, leaves=True)
    assert [(line["statusCode"], line.get("sampleRate")) for line in watched.requests()] == [(499, None)]


async def test_a_404_is_sampled(tmp_path: Path) -> None:
    """A scanner makes many of them."""
    watched = watch(_app, tmp_path, request_sample=0.5)
    await _fetch(watched, DROPPED, "/404")
    await _fetch(watched, KEPT, "/404")
    assert [line["sampleRate"] for line in watched.requests()] == [0.5]


async def test_a_sampled_line_with_escapes_has_its_rate(tmp_path: Path) -> None:
    """Lines with characters that have to be escaped are rendered differently."""
    watched = watch(_app, tmp_path, request_sample=0.5)
    await _fetch(watched, KEPT, query_string="q=\u202e".encode())
    (line,) = watched.requests()
    assert (line["sampleRate"], line["url"]) == (0.5, "/?q=\u202e")


@given(
    trace=st.text("0123456789abcdef", min_size=32, max_size=32),
    shares=st.tuples(st.floats(1e-15, 0.999), st.floats(1e-15, 0.999)),
)
def test_a_larger_share_keeps_all_that_a_smaller_one_keeps(trace: str, shares: tuple[float, float]) -> None:
    """Services with different shares agree on the traces of the smallest."""
    smaller, larger = (trace[RANDOM_FROM:] >= sample_floor(share) for share in sorted(shares))
    assert larger or not smaller


def test_the_share_of_kept_traces() -> None:
    """Of evenly distributed traces a tenth is kept at 0.1; a tiny share keeps at least one."""
    traces = [f"{(2 * number + 1) * 16**14 // 2000:014x}" for number in range(1000)]
    for share, kept in ((0.1, 100), (0.5, 500), (0.999, 999)):
        assert sum(trace >= sample_floor(share) for trace in traces) == kept
    assert sample_floor(1e-300) == "f" * 14

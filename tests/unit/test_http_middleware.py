import asyncio
import contextlib
import copy
import json
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.asgi import LOCAL_HOST, Message, fetch, response_body, response_start, scope_of, sends, watch
from watchkeeper.http import error_body, name_route, note_exception
from watchkeeper.http._request_recorder import SEND_BUFFER
from watchkeeper.logs import current_request, trace_headers

Send = Callable[[Message], Awaitable[None]]

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


_hello = sends(response_start(201, (b"content-type", b"text/plain")), response_body(b"hello"))


async def test_a_request_is_one_count_one_duration_and_one_line(tmp_path: Path) -> None:
    """The line has the contract's keys in the contract's order."""
    watched = watch(_hello, tmp_path, resolve_route=lambda _scope: "/things/{id}")
    reply = await fetch(watched.app, "/things/7", "POST", query_string=b"a=1&b=%20")
    assert (reply.status, reply.body) == (201, b"hello")
    (line,) = watched.lines()
    assert list(line) == [
        "level", "time", "service", "env", "type", "method", "url", "statusCode", "duration", "requestId",
        "route", "outcome", "trace_id", "span_id", "bytes",
    ]  # fmt: skip
    shown = [line[key] for key in ("level", "type", "method", "url", "statusCode", "outcome", "bytes")]
    assert shown == ["info", "request", "POST", "/things/7?a=1&b=%20", 201, "completed", 5]
    assert line["route"] == "/things/{id}"
    assert line["requestId"] == reply.headers["x-request-id"]
    assert watched.count("/things/{id}", 201, "POST") == 1.0
    labels = {"method": "POST", "route": "/things/{id}"}
    assert watched.registry.sample("http_request_duration_seconds_count", **labels) == 1.0


async def test_the_ids_are_bound_during_the_request(tmp_path: Path) -> None:
    """The app, its tasks and its outgoing calls see the client's ids; afterwards none are bound."""
    seen: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Send) -> None:
        async def task() -> None:
            seen.append(trace_headers())

        await asyncio.create_task(task())
        seen.append(current_request())
        await _hello(_scope, _receive, send)

    headers = [
        LOCAL_HOST,
        (b"x-request-id", b"order-7"),
        (b"traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode()),
    ]
    watched = watch(app, tmp_path)
    reply = await fetch(watched.app, headers=headers)
    (line,) = watched.lines()
    assert reply.headers["x-request-id"] == "order-7"
    assert seen[0] == {"X-Request-ID": "order-7", "traceparent": f"00-{TRACE}-{line['span_id']}-01"}
    assert (seen[1].request_id, seen[1].trace_id) == ("order-7", TRACE)
    assert (line["requestId"], line["trace_id"]) == ("order-7", TRACE)
    assert current_request() is None


async def test_the_apps_own_request_id_is_replaced(tmp_path: Path) -> None:
    """The response has one id: the one in the line."""
    watched = watch(
        sends(response_start(200, (b"x-request-id", b"other"), (b"a", b"b")), response_body()), tmp_path
    )
    reply = await fetch(watched.app, headers=[LOCAL_HOST, (b"x-request-id", b"mine")])
    assert reply.headers == {"a": "b", "x-request-id": "mine"}


async def test_the_apps_messages_are_not_changed(tmp_path: Path) -> None:
    """Apps reuse constant messages, and ASGI lets them leave the headers out."""
    for message in (response_start(), {"type": "http.response.start", "status": 204}):
        before = copy.deepcopy(message)
        watched = watch(sends(message, response_body()), tmp_path)
        for _ in range(2):
            assert set((await fetch(watched.app)).headers) == {"x-request-id"}
        assert message == before


async def test_streaming_is_measured_to_the_last_byte(tmp_path: Path) -> None:
    """Nothing is counted or logged before the end; all bytes are."""
    watched: Any = None

    async def app(_scope: Any, _receive: Any, send: Send) -> None:
        await send(response_start())
        for _ in range(3):
            await asyncio.sleep(0.02)
            await send(response_body(b"part", more=True))
        assert watched.lines() == []
        assert watched.count("unmatched", 200) == 0.0
        await send(response_body())

    watched = watch(app, tmp_path)
    assert (await fetch(watched.app)).body == b"part" * 3
    (line,) = watched.lines()
    assert (line["bytes"], line["outcome"]) == (12, "completed")
    assert line["duration"] >= 60
    assert watched.durations("unmatched") >= 0.06


@pytest.mark.parametrize("parts", [[b"x" * (SEND_BUFFER + 1)], [b"x", b""], [b"x", b"y" * SEND_BUFFER]])
async def test_a_slow_client_is_part_of_the_duration(parts: list[bytes], tmp_path: Path) -> None:
    """The server's back pressure on the last byte counts."""
    *first, last = parts
    app = sends(response_start(), *(response_body(part, more=True) for part in first), response_body(last))

    async def slow(message: Message) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            await asyncio.sleep(0.05)

    watched = watch(app, tmp_path)
    await fetch(watched.app, on_send=slow)
    assert watched.lines()[0]["duration"] >= 50
    assert watched.durations("unmatched") >= 0.05


async def test_a_short_response_is_counted_before_it_is_sent(tmp_path: Path) -> None:
    """A client that has the whole response was counted, even if the process is killed right after."""
    counted: list[tuple[str, float, float]] = []

    async def note(message: Message) -> None:
        measured = watched.registry.sample(
            "http_request_duration_seconds_count", method="GET", route="unmatched"
        )
        counted.append((message["type"], watched.count("unmatched", 201), measured or 0.0))

    watched = watch(_hello, tmp_path)
    await fetch(watched.app, on_send=note)
    assert counted == [("http.response.start", 0.0, 0.0), ("http.response.body", 1.0, 1.0)]


async def test_background_tasks_are_not_part_of_the_duration(tmp_path: Path) -> None:
    """The client has its response; a later message is ignored."""
    watched: Any = None

    async def app(_scope: Any, _receive: Any, send: Send) -> None:
        await _hello(_scope, _receive, send)
        assert len(watched.lines()) == 1
        await send(response_body(b"too late"))

    watched = watch(app, tmp_path)
    await fetch(watched.app)
    assert watched.count("unmatched", 201) == 1.0
    assert len(watched.requests()) == 1


async def test_trailers_come_after_the_last_byte(tmp_path: Path) -> None:
    """A response that announces trailers ends with them."""
    watched: Any = None

    async def app(_scope: Any, _receive: Any, send: Send) -> None:
        await send(response_start(trailers=True))
        await send(response_body(b"x"))
        await send({"type": "http.response.trailers", "headers": [], "more_trailers": True})
        assert watched.lines() == []
        await send({"type": "http.response.trailers", "headers": []})

    watched = watch(app, tmp_path)
    await fetch(watched.app)
    assert [line["outcome"] for line in watched.requests()] == ["completed"]


async def test_bytes_of_files_that_the_server_sends_are_counted(tmp_path: Path) -> None:
    """The extensions for sending files name a file or a count."""
    (tmp_path / "file").write_bytes(b"x" * 1234)

    async def app(scope: Any, _receive: Any, send: Send) -> None:
        await send(response_start())
        if scope["path"] == "/copy":
            await send({"type": "http.response.zerocopysend", "file": 3, "count": 100, "more_body": True})
            await send({"type": "http.response.zerocopysend", "file": 3})
        else:
            await send({"type": "http.response.pathsend", "path": str(tmp_path) + scope["path"]})

    watched = watch(app, tmp_path)
    for path in ("/file", "/gone", "/copy"):
        await fetch(watched.app, path)
    assert [line["bytes"] for line in watched.requests()] == [1234, 0, 100]
    assert [line["outcome"] for line in watched.requests()] == ["completed"] * 3


async def test_head_sends_no_bytes(tmp_path: Path) -> None:
    """The server drops the body of an app that answers HEAD like GET."""
    watched = watch(_hello, tmp_path)
    await fetch(watched.app, method="HEAD")
    assert watched.lines()[0]["bytes"] == 0
    assert watched.count("unmatched", 201, "HEAD") == 1.0


async def test_unknown_methods_share_one_label(tmp_path: Path) -> None:
    """The line has the method itself, escaped."""
    watched = watch(_hello, tmp_path)
    for method in ("BREW", "get", "X" * 200):
        await fetch(watched.app, method=method)
    assert watched.count("unmatched", 201, "_OTHER") == 3.0
    assert [line["method"] for line in watched.requests()] == ["BREW", "get", "X" * 200]


async def test_random_paths_make_one_series(tmp_path: Path) -> None:
    """Ten thousand paths of a scanner are `unmatched`, once."""
    watched = watch(_hello, tmp_path, request_lines=False)
    for number in range(10_000):
        await watched.app(scope_of(f"/{number}.php"), _never, _drop)
    assert watched.routes() == {"unmatched"}
    assert watched.count("unmatched", 201) == 10_000
    assert watched.lines() == []


async def _never() -> Message:
    return await asyncio.Event().wait() and {}


async def _drop(_message: Message) -> None:
    return


@pytest.mark.parametrize(
    ("more", "url"),
    [
        ({"raw_path": b"/caf%C3%A9", "query_string": b"q=%E2%82%AC"}, "/caf%C3%A9?q=%E2%82%AC"),
        ({"raw_path": "/café".encode(), "query_string": b""}, "/café"),
        ({"raw_path": b"/\xff\xfe", "query_string": b"\xff"}, "/\\xff\\xfe?\\xff"),
        ({"raw_path": b"/a%0d%0ab", "query_string": b"x=%00"}, "/a%0d%0ab?x=%00"),
        ({"raw_path": None, "path": "/café"}, "/café"),
        ({"raw_path": b"", "path": "/a\ud800"}, "/a\\xed\\xa0\\x80"),
    ],
)
async def test_the_url_is_path_and_query_as_received(tmp_path: Path, more: dict[str, Any], url: str) -> None:
    """Percent escapes stay, and bytes that are not UTF-8 are escaped."""
    watched = watch(_hello, tmp_path)
    await fetch(watched.app, **more)
    assert watched.lines()[0]["url"] == url


async def test_the_url_is_read_before_the_app_rewrites_it(tmp_path: Path) -> None:
    """Some frameworks change the scope for what they mount."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        scope.update(path="/inner", raw_path=b"/inner", query_string=b"")
        await _hello(scope, receive, send)

    watched = watch(app, tmp_path)
    await fetch(watched.app, "/outer/inner", query_string=b"a=1")
    assert watched.lines()[0]["url"] == "/outer/inner?a=1"


async def test_an_exception_before_the_response_is_a_500(tmp_path: Path) -> None:
    """It has the error body and the id; the exception is logged once, before the request."""
    watched = watch(sends(ValueError("secret inside")), tmp_path)
    reply = await fetch(watched.app, "/x")
    assert (reply.status, reply.error, reply.complete) == (500, None, True)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["content-length"] == str(len(reply.body))
    assert reply.json == {
        "error": {
            "code": "internal_error",
            "message": "Something went wrong here; the request id finds it in the log.",
            "requestId": reply.headers["x-request-id"],
        }
    }
    exception, request = watched.lines()
    assert (exception["level"], exception["error"]["type"]) == ("error", "ValueError")
    assert exception["error"]["message"] == "secret inside"
    assert exception["requestId"] == request["requestId"] == reply.headers["x-request-id"]
    assert (request["statusCode"], request["outcome"]) == (500, "failed")
    assert watched.count("unmatched", 500) == 1.0


async def test_head_of_a_failure_has_nobody(tmp_path: Path) -> None:
    """The headers are those of the body that GET would have."""
    reply = await fetch(watch(sends(ValueError("x")), tmp_path).app, method="HEAD")
    assert (reply.status, reply.body) == (500, b"")
    assert int(reply.headers["content-length"]) > 50


@pytest.mark.parametrize("pieces", [0, 1])
async def test_an_exception_in_the_middle_is_raised_again(tmp_path: Path, pieces: int) -> None:
    """The server then closes, so that the client knows; the line has the sent status."""
    half = [response_body(b"half", more=True)] * pieces
    watched = watch(sends(response_start(), *half, ValueError("in the middle")), tmp_path)
    reply = await fetch(watched.app)
    assert isinstance(reply.error, ValueError)
    assert not reply.complete
    exception, request = watched.lines()
    assert exception["error"]["message"] == "in the middle"
    assert (request["statusCode"], request["outcome"], request["bytes"]) == (200, "failed", 4 * pieces)
    assert watched.count("unmatched", 200) == 1.0


async def test_an_exception_after_the_response_is_only_logged(tmp_path: Path) -> None:
    """A background task that fails has a line; the request was completed."""
    watched = watch(sends(response_start(201), response_body(), ValueError("in the background")), tmp_path)
    reply = await fetch(watched.app)
    assert reply.error is None
    request, exception = watched.lines()
    assert (request["statusCode"], request["outcome"]) == (201, "completed")
    assert exception["error"]["message"] == "in the background"


async def test_a_500_that_a_framework_sends_before_it_raises_has_failed(tmp_path: Path) -> None:
    """As Starlette does: the exception's line comes first."""
    watched = watch(
        sends(response_start(500), response_body(b"Internal Server Error"), ValueError("inside")), tmp_path
    )
    reply = await fetch(watched.app)
    assert (reply.status, reply.body, reply.error) == (500, b"Internal Server Error", None)
    assert [line.get("outcome") for line in watched.lines()] == [None, "failed"]
    assert watched.count("unmatched", 500) == 1.0


async def test_a_5xx_without_an_exception_is_completed(tmp_path: Path) -> None:
    """Its duration ends with its last byte, whatever runs after it."""

    async def app(_scope: Any, _receive: Any, send: Send) -> None:
        await send(response_start(503))
        await send(response_body(b"later"))
        await asyncio.sleep(0.1)

    watched = watch(app, tmp_path)
    began = time.perf_counter()
    await fetch(watched.app)
    took = time.perf_counter() - began
    (line,) = watched.lines()
    assert (line["statusCode"], line["outcome"]) == (503, "completed")
    assert line["duration"] <= (took - 0.1) * 1000


async def test_an_app_without_a_response_has_failed(tmp_path: Path) -> None:
    """The client gets a 500, the log a reason."""
    watched = watch(sends(), tmp_path)
    reply = await fetch(watched.app)
    assert (reply.status, reply.json["error"]["code"]) == (500, "internal_error")
    exception, request = watched.lines()
    assert exception["error"]["message"] == "The app returned without a response."
    assert request["outcome"] == "failed"


async def test_an_app_that_stops_in_the_middle_has_failed(tmp_path: Path) -> None:
    """The last byte was never sent."""
    watched = watch(sends(response_start(), response_body(b"half", more=True)), tmp_path)
    await fetch(watched.app)
    assert [line["outcome"] for line in watched.lines()] == ["failed"]


async def test_an_error_while_sending_the_500_is_raised(tmp_path: Path) -> None:
    """The app's exception and the request have their lines all the same."""

    async def broken(_message: Message) -> None:
        raise OSError("connection lost")

    watched = watch(sends(ValueError("inside")), tmp_path)
    reply = await fetch(watched.app, on_send=broken)
    assert isinstance(reply.error, OSError)
    assert [line["error"]["type"] for line in watched.lines() if "error" in line] == ["ValueError"]
    assert [line["outcome"] for line in watched.requests()] == ["failed"]


class ClientDisconnect(Exception):  # noqa: N818 - Starlette's name for it
    """As Starlette raises it."""


async def test_a_client_that_leaves_during_its_upload_is_aborted(tmp_path: Path) -> None:
    """With 499, whether the framework raises, returns or answers."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if scope["path"] == "/raises":
            raise ClientDisconnect
        if scope["path"] == "/answers":
            await send(response_start(500))
            await send(response_body(b"client disconnected prematurely"))

    watched = watch(app, tmp_path)
    for path in ("/raises", "/returns", "/answers"):
        reply = await fetch(watched.app, path, "POST", body=[b"half"], leaves=True)
        assert reply.error is None
    logged = [(line.get("statusCode"), line.get("outcome")) for line in watched.lines()]
    assert logged == [(499, "aborted")] * 3
    assert watched.count("unmatched", 499, "POST") == 3.0


async def test_a_client_that_leaves_during_a_stream_is_aborted(tmp_path: Path) -> None:
    """An app may stop then; the line has the sent status."""

    async def app(_scope: Any, receive: Any, send: Send) -> None:
        await send(response_start())
        await send(response_body(b"half", more=True))
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    watched = watch(app, tmp_path)
    await fetch(watched.app, leaves=True)
    (line,) = watched.lines()
    assert (line["statusCode"], line["outcome"]) == (200, "aborted")


async def _cancel(request: Coroutine[Any, Any, Any]) -> None:
    task = asyncio.create_task(request)
    await asyncio.sleep(0.01)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task


@pytest.mark.parametrize("started", [False, True])
async def test_a_cancelled_request_is_recorded_and_stays_cancelled(tmp_path: Path, started: bool) -> None:  # noqa: FBT001
    """The server's cancellation is raised on; line and count are there."""
    watched = watch(sends(response_start(), None) if started else sends(None), tmp_path)
    await _cancel(fetch(watched.app))
    (line,) = watched.lines()
    assert (line["statusCode"], line["outcome"]) == (200 if started else 499, "cancelled")
    assert current_request() is None


@pytest.mark.parametrize("status", [200, 503])
async def test_a_request_cancelled_after_its_last_byte_was_completed(tmp_path: Path, status: int) -> None:
    """What was cancelled is the background task."""
    watched = watch(sends(response_start(status), response_body(b"all"), None), tmp_path)
    await _cancel(fetch(watched.app))
    assert [line["outcome"] for line in watched.lines()] == ["completed"]


async def test_an_exception_that_a_framework_hides_can_be_noted(tmp_path: Path) -> None:
    """Litestar and Quart answer themselves: a hook logs it once, and the request has failed."""

    async def app(scope: Any, _receive: Any, send: Send) -> None:
        error = ValueError("hidden")
        await note_exception(error, dict(scope))
        await send(response_start(500))
        await send(response_body(b"sorry"))

    watched = watch(app, tmp_path)
    await fetch(watched.app)
    exception, request = watched.lines()
    assert exception["error"]["message"] == "hidden"
    assert request["outcome"] == "failed"


async def test_an_exception_that_is_an_answer_is_not_noted(tmp_path: Path) -> None:
    """A framework's own 404 is no failure; outside a request note_exception does nothing."""

    class NotFoundException(Exception):  # noqa: N818 - Litestar's name for it
        status_code = 404

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await note_exception(NotFoundException(), scope)
        await _hello(scope, receive, send)

    watched = watch(app, tmp_path)
    await fetch(watched.app)
    assert [line["outcome"] for line in watched.lines()] == ["completed"]
    await note_exception(ValueError("x"), {})
    name_route({}, "/x")
    assert len(watched.lines()) == 1


async def test_an_app_can_name_its_route(tmp_path: Path) -> None:
    """For unknown frameworks; a copy of the scope works too."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        name_route(dict(scope), "/named/{id}")
        await _hello(scope, receive, send)

    watched = watch(app, tmp_path)
    await fetch(watched.app, "/named/7")
    assert watched.lines()[0]["route"] == "/named/{id}"
    assert watched.routes() == {"/named/{id}"}


@pytest.mark.parametrize("status", [404, 405])
async def test_what_matched_nothing_is_unmatched(tmp_path: Path, status: int) -> None:
    """Any 405, and the 404 of a catch-all; other 404s keep their route."""
    watched = watch(
        sends(response_start(status), response_body()),
        tmp_path,
        resolve_route=lambda scope: str(scope["path"]),
    )
    await fetch(watched.app, "/files/{path}")
    await fetch(watched.app, "/items/{id}")
    found = "unmatched" if status == 405 else "/items/{id}"
    assert [line["route"] for line in watched.lines()] == ["unmatched", found]


async def test_an_exception_in_the_resolver_does_not_fail_the_request(tmp_path: Path) -> None:
    """The route is unmatched, and the exception is logged."""

    def resolve(_scope: Any) -> str:
        raise KeyError("route")

    watched = watch(_hello, tmp_path, resolve_route=resolve)
    reply = await fetch(watched.app)
    assert (reply.status, reply.complete, reply.error) == (201, True, None)
    assert watched.count("unmatched", 201) == 1.0
    assert [line.get("outcome") for line in watched.lines()] == [None, "completed"]


async def test_request_lines_can_be_switched_off(tmp_path: Path) -> None:
    """The metrics go on, and so do the lines of exceptions."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        if scope["path"] == "/boom":
            raise ValueError("x")
        await _hello(scope, receive, send)

    watched = watch(app, tmp_path, request_lines=False)
    await fetch(watched.app)
    await fetch(watched.app, "/boom")
    assert watched.count("unmatched", 201) == 1.0
    assert [line["level"] for line in watched.lines()] == ["error"]


async def test_other_scopes_are_passed_on(tmp_path: Path) -> None:
    """The lifespan belongs to the keeper."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    scope = {"type": "lifespan"}
    await watch(app, tmp_path).app(scope, _never, _drop)
    assert seen == [(scope, _never, _drop)]


@given(
    path=st.text(max_size=30),
    raw=st.binary(max_size=30),
    query=st.binary(max_size=30),
    method=st.text(max_size=10),
    name=st.sampled_from([b"x-request-id", b"traceparent", b"authorization", b"accept", b"host", b"x"]),
    value=st.binary(max_size=60),
)
def test_any_request_makes_one_valid_line(  # noqa: PLR0917 - what a client chooses
    tmp_path: Path, path: str, raw: bytes, query: bytes, method: str, name: bytes, value: bytes
) -> None:
    """No bytes of a client break the middleware, a line or a header."""
    watched = watch(_hello, tmp_path, probe_lines=True)
    before = len(watched.lines())
    more: dict[str, Any] = {"raw_path": raw, "query_string": query, "headers": [(name, value)]}
    reply = asyncio.run(fetch(watched.app, path, method, **more))
    assert reply.error is None
    assert reply.complete
    assert re.fullmatch("[A-Za-z0-9._-]+", reply.headers["x-request-id"])
    assert len(watched.lines()) == before + 1


def test_the_error_body() -> None:
    """The status gives the default code and message; details are optional."""
    assert json.loads(error_body(404, request_id="r")) == {
        "error": {"code": "not_found", "message": "Not Found.", "requestId": "r"}
    }
    assert json.loads(error_body(422, "refused", "Too small.", "r", [{"field": "a"}])) == {
        "error": {"code": "refused", "message": "Too small.", "requestId": "r", "details": [{"field": "a"}]}
    }
    assert json.loads(error_body(499))["error"]["code"] == "status_499"
    assert json.loads(error_body(203))["error"]["code"] == "non_authoritative_information"


async def test_a_last_message_that_is_sent_again_counts_once(tmp_path: Path) -> None:
    """An app may retry it after the server refused it."""
    refused = [1, 1]

    async def app(_scope: Any, _receive: Any, send: Send) -> None:
        await send(response_start(200))
        await send(response_body(b"x", more=True))
        for _ in range(3):
            with contextlib.suppress(OSError):
                await send(response_body())

    async def refuse(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body") and refused:
            refused.pop()
            raise OSError("gone")

    watched = watch(app, tmp_path)
    await fetch(watched.app, on_send=refuse)
    assert watched.count("unmatched", 200) == 1.0


@pytest.mark.parametrize("error", [KeyError("body"), ConnectionRefusedError("database")], ids=repr)
async def test_an_exception_after_the_client_left_is_logged(tmp_path: Path, error: Exception) -> None:
    """The request was aborted, but neither a bug nor a database's OSError means that the client left."""

    async def app(_scope: Any, receive: Any, _send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise error

    watched = watch(app, tmp_path)
    await fetch(watched.app, leaves=True)
    exception, request = watched.lines()
    assert exception["error"]["type"] == type(error).__name__
    assert (request["statusCode"], request["outcome"]) == (499, "aborted")

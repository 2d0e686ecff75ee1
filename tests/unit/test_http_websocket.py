import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from support.asgi import LOCAL_HOST, Watched, watch
from support.websocket import play
from watchkeeper.http import name_route, note_exception
from watchkeeper.logs import current_request

ROUTE = "/feed/{id}"
ACCEPT = {"type": "websocket.accept"}
DENIAL = ({"type": "websocket.http.response.start", "status": 401}, {"type": "websocket.http.response.body"})


class WebSocketDisconnect(Exception):  # noqa: N818 - Starlette's name for it
    """As Starlette and Litestar raise it."""


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    """Echo until the client leaves."""
    name_route(scope, ROUTE)
    await receive()
    await send(ACCEPT)
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def _connections(watched: Watched, outcome: str, route: str = ROUTE) -> float:
    return watched.registry.sample("websocket_connections_total", route=route, outcome=outcome) or 0.0


def _messages(watched: Watched, direction: str) -> float:
    return watched.registry.sample("websocket_messages_total", route=ROUTE, direction=direction) or 0.0


def _open(watched: Watched, route: str = ROUTE) -> float | None:
    return watched.registry.sample("websocket_connections_open", route=route)


async def test_a_connection_is_one_count_and_one_line_at_its_end(tmp_path: Path) -> None:
    """The line has the outcome, the duration and the messages in each direction."""
    watched = watch(_echo, tmp_path)
    headers = [LOCAL_HOST, (b"x-request-id", b"socket-1")]
    await play(watched.app, "/feed/7", "a", "b", 1000, headers=headers, query_string=b"q=1")
    (line,) = watched.lines()
    assert list(line)[4:] == [
        "type", "url", "route", "code", "duration", "requestId", "outcome", "received", "sent", "trace_id",
        "span_id",
    ]  # fmt: skip
    shown = [line[key] for key in ("level", "type", "url", "route")]
    assert shown == ["info", "websocket", "/feed/7?q=1", ROUTE]
    assert (line["code"], line["outcome"], line["received"], line["sent"]) == (1000, "completed", 2, 2)
    assert line["requestId"] == "socket-1"
    assert _connections(watched, "completed") == 1.0
    assert (_messages(watched, "received"), _messages(watched, "sent")) == (2.0, 2.0)


async def test_open_connections_are_a_gauge(tmp_path: Path) -> None:
    """It goes up on accept and down at the end; messages are counted as they pass."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(_open(watched))
        await _echo(scope, receive, send)
        seen.append((_open(watched), _messages(watched, "sent"), watched.lines()))

    watched = watch(app, tmp_path)
    await play(watched.app, "/", "a", 1001)
    assert seen == [None, (1.0, 1.0, [])]
    assert _open(watched) == 0.0


async def test_the_handshake_carries_the_request_id(tmp_path: Path) -> None:
    """It is bound during the connection and replaces the app's own; the app's message is not changed."""
    seen: list[Any] = []
    accept = {"type": "websocket.accept", "headers": [(b"a", b"b"), (b"x-request-id", b"other")]}

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_request())
        await receive()
        await send(accept)

    played = await play(watch(app, tmp_path).app, headers=[(b"x-request-id", b"mine")])
    assert played.messages[0]["headers"] == [(b"a", b"b"), (b"x-request-id", b"mine")]
    assert len(accept["headers"]) == 2
    assert seen[0].request_id == "mine"
    assert current_request() is None


def _answers(*messages: Any) -> Any:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for message in messages:
            await send(message)

    return app


async def _leaving(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(ACCEPT)
    await receive()
    raise WebSocketDisconnect


async def _gone_before(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await receive()
    await send({"type": "websocket.close"})


async def _hidden(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(ACCEPT)
    await note_exception(ValueError("hidden"), scope)
    await send({"type": "websocket.close", "code": 1011})


@pytest.mark.parametrize(
    ("app", "said", "outcome", "code"),
    [
        (_answers({"type": "websocket.close", "code": 1008}), (), "rejected", 403),
        (_answers(*DENIAL), (), "rejected", 401),
        (_answers(ACCEPT, {"type": "websocket.close", "code": 4000}), (), "completed", 4000),
        (_answers(ACCEPT), (), "completed", 1005),
        (_echo, (1001,), "completed", 1001),
        (_echo, (1006,), "aborted", 1006),
        (_echo, (1005,), "aborted", 1006),  # how uvicorn and granian report a lost connection
        (_leaving, (1000,), "completed", 1000),
        (_leaving, (1006,), "aborted", 1006),
        (_gone_before, (1006,), "aborted", 499),
        (_answers(), (), "failed", 500),
        (_hidden, (), "failed", 1011),
    ],
)
async def test_outcome_and_code(tmp_path: Path, app: Any, said: tuple[int], outcome: str, code: int) -> None:
    """The code is that of the side that closed first, or the status of a refused handshake."""
    watched = watch(app, tmp_path, resolve_route=lambda _scope: ROUTE)
    played = await play(watched.app, "/", *said)
    assert played.error is None
    assert [(line["outcome"], line["code"]) for line in watched.sockets()] == [(outcome, code)]
    assert _connections(watched, outcome) == 1.0
    assert not _open(watched)


@pytest.mark.parametrize(("accepts", "code"), [(False, 500), (True, 1011)])
async def test_an_exception_is_logged_once_and_raised(
    tmp_path: Path,
    accepts: bool,  # noqa: FBT001 - a table
    code: int,
) -> None:
    """The server then closes; the exception's line comes before the connection's."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if accepts:
            await send(ACCEPT)
        raise ValueError("inside")

    watched = watch(app, tmp_path)
    played = await play(watched.app)
    assert isinstance(played.error, ValueError)
    exception, line = watched.lines()
    assert exception["error"]["message"] == "inside"
    assert exception["requestId"] == line["requestId"]
    assert (line["outcome"], line["code"]) == ("failed", code)


async def test_a_bug_after_a_disconnect_is_a_failure(tmp_path: Path) -> None:
    """Only exceptions that report the disconnect are not."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        _ = (await receive())["text"]

    watched = watch(app, tmp_path)
    assert isinstance((await play(watched.app, "/", 1001)).error, KeyError)
    assert [(line["outcome"], line["code"]) for line in watched.sockets()] == [("failed", 1001)]


@pytest.mark.parametrize(
    ("raised", "outcome", "logged"),
    [("as it came", "aborted", 0), ("wrapped", "aborted", 0), ("another", "failed", 1)],
)
async def test_the_apps_own_oserror_is_logged(tmp_path: Path, raised: str, outcome: str, logged: int) -> None:
    """After a disconnect; the server's OSError, and what a framework makes of it, only report that."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        try:
            await send({"type": "websocket.send", "text": "a"})
        except OSError as error:
            if raised == "as it came":
                raise
            if raised == "wrapped":
                raise RuntimeError("cannot send") from error
        raise OSError("no space left on the app's own disk")

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        if message["type"] == "websocket.send":
            raise BrokenPipeError

    watched = watch(app, tmp_path)
    with contextlib.suppress(OSError):
        await watched.app({"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert [(line["outcome"], line["code"], line["sent"]) for line in watched.sockets()] == [
        (outcome, 1006, 0)
    ]
    assert sum("error" in line for line in watched.lines()) == logged


async def test_a_client_that_closes_without_a_code_has_completed(tmp_path: Path) -> None:
    """Its close frame arrived: uvicorn gives a reason then, even an empty one."""
    coming = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1005, "reason": ""}]

    async def receive() -> Any:
        return coming.pop(0)

    async def send(_message: Any) -> None:
        return

    watched = watch(_echo, tmp_path)
    await watched.app({"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert [(line["outcome"], line["code"]) for line in watched.lines()] == [("completed", 1005)]


async def test_a_cancelled_connection_is_recorded_and_stays_cancelled(tmp_path: Path) -> None:
    """The server's cancellation is raised on; line, count and gauge are right."""
    watched = watch(_echo, tmp_path)
    task = asyncio.create_task(play(watched.app))
    await asyncio.sleep(0.01)
    assert _open(watched) == 1.0
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert [(line["outcome"], line["code"]) for line in watched.lines()] == [("cancelled", 1006)]
    assert _open(watched) == 0.0


async def test_an_exception_in_the_resolver_does_not_fail_the_connection(tmp_path: Path) -> None:
    """The route is unmatched, and the exception is logged."""

    def resolve(_scope: Any) -> str:
        raise KeyError("route")

    watched = watch(_answers(ACCEPT), tmp_path, resolve_route=resolve)
    assert (await play(watched.app)).error is None
    assert [line.get("route") for line in watched.lines()] == [None, "unmatched"]
    assert _connections(watched, "completed", "unmatched") == 1.0


async def test_lines_and_metrics_can_be_switched_off(tmp_path: Path) -> None:
    """With the same settings as those of requests."""
    quiet = watch(_echo, tmp_path, request_lines=False)
    await play(quiet.app, "/", 1000)
    assert quiet.lines() == []
    assert _connections(quiet, "completed") == 1.0
    uncounted = watch(_echo, tmp_path, metrics=False)
    await play(uncounted.app, "/", "a", 1000)
    assert [line["sent"] for line in uncounted.lines()] == [1]
    assert _open(uncounted) is None


async def test_websockets_on_endpoint_paths_are_the_apps(tmp_path: Path) -> None:
    """Sampling and probe lines do not apply to them."""
    watched = watch(_echo, tmp_path, request_sample=1e-9)
    await play(watched.app, "/metrics", 1000)
    assert [line["url"] for line in watched.sockets()] == ["/metrics"]


async def test_secrets_in_the_url_are_masked(tmp_path: Path) -> None:
    """Browsers cannot send headers there, so tokens are often in the query."""
    watched = watch(_echo, tmp_path)
    await play(watched.app, "/", 1000, query_string=b"token=abc123&room=7")
    (line,) = watched.lines()
    assert "abc123" not in line["url"]
    assert "room=7" in line["url"]

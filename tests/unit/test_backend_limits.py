import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from realestate.asgi import Message, Receive, Scope, Send
from realestate.errors import ApiError, ClientLeftError
from realestate.limits import BodyLimits


class Reader:
    """An app that reads its whole body, and then waits for the disconnect."""

    def __init__(self) -> None:
        self.body = b""
        self.after: Message | None = None

    async def __call__(self, _scope: Scope, receive: Receive, _send: Send) -> None:
        more = True
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            more = message.get("more_body", False)
        self.after = await receive()


async def read(
    messages: Iterable[Message], *, headers: Iterable[tuple[bytes, bytes]] = (), pause: float = 0
) -> Reader:
    """Send the messages through limits of 10 bytes and 0.2 s."""
    reader, queue = Reader(), list(messages)
    started: list[Message] = []

    async def receive() -> Message:
        message = queue.pop(0)
        await asyncio.sleep(pause if started else 0)
        started.append(message)
        return message

    scope: dict[str, Any] = {"type": "http", "headers": list(headers)}
    await BodyLimits(reader, limit=10, timeout=timedelta(seconds=0.2))(scope, receive, _no_send)
    return reader


async def _no_send(_message: Message) -> None:
    raise AssertionError("nothing is sent here")


def part(body: bytes, *, more: bool = False) -> Message:
    """Return one message of a body."""
    return {"type": "http.request", "body": body, "more_body": more}


LEFT: Message = {"type": "http.disconnect"}


async def test_body_up_to_the_limit_passes() -> None:
    """A body of exactly the limit arrives whole, and what follows it is passed on."""
    reader = await read([part(b"12345", more=True), part(b"67890"), LEFT])
    assert reader.body == b"1234567890"
    assert reader.after == LEFT


async def test_far_too_large_is_refused_before_a_byte_is_read() -> None:
    """An announced length of more than four times the limit is refused at the app's first read."""
    with pytest.raises(ApiError, match="larger than 10 bytes") as caught:
        await read([], headers=[(b"host", b"x"), (b"content-length", b"41")])
    assert (caught.value.status, caught.value.headers) == (413, {"Connection": "close"})


@pytest.mark.parametrize("announced", [b"12", b""])
async def test_a_little_too_large_is_read_to_its_end_first(announced: bytes) -> None:
    """A client whose connection is not reset sees why it was refused."""
    messages = [part(b"123456", more=True), part(b"78901", more=True), part(b"2")]
    left = list(messages)

    async def receive() -> Message:
        return left.pop(0)

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while True:
            await receive()

    with pytest.raises(ApiError, match="larger than 10 bytes"):
        await BodyLimits(app, limit=10, timeout=timedelta(seconds=1))(
            {"type": "http", "headers": [(b"content-length", announced)]}, receive, _no_send
        )
    assert left == []


async def test_a_body_without_end_is_not_read_to_its_end() -> None:
    """Draining stops at four times the limit."""
    with pytest.raises(ApiError, match="larger than 10 bytes"):
        await read([part(b"1234567890", more=True)] * 5)


@pytest.mark.parametrize("announced", [b"", b"many", b"-1", b"5"])
async def test_body_that_lies_about_its_length_is_counted(announced: bytes) -> None:
    """The received bytes count, not the announced length."""
    with pytest.raises(ApiError, match="larger than 10 bytes"):
        await read([part(b"123456", more=True), part(b"78901")], headers=[(b"content-length", announced)])


async def test_slow_body_is_refused_at_the_deadline() -> None:
    """The deadline is for the whole body: single bytes do not extend it."""
    with pytest.raises(ApiError, match=r"within 0\.2 seconds") as caught:
        await read([part(b"1", more=True)] * 8, pause=0.06)
    assert caught.value.status == 408


async def test_waiting_after_the_body_has_no_deadline() -> None:
    """An app may wait long for the disconnect."""
    reader = await read([part(b"1"), LEFT], pause=0.4)
    assert reader.after == LEFT


async def test_client_that_leaves_within_the_body_is_noticed() -> None:
    """Half a body is not passed on as a whole one."""
    with pytest.raises(ClientLeftError, match="before the whole request"):
        await read([part(b"1", more=True), LEFT])


async def test_other_scopes_are_passed_on() -> None:
    """The lifespan has no body."""
    seen: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    limits = BodyLimits(app, limit=10, timeout=timedelta(seconds=1))
    await limits({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == [{"type": "lifespan"}]

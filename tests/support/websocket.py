"""A websocket client for the tests, and a connection played in process."""

import asyncio
import contextlib
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Self

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Message,
    RejectConnection,
    Request,
    TextMessage,
)

from support.asgi import LOCAL_HOST, App


def socket_scope(path: str = "/", **more: Any) -> dict[str, Any]:
    """Return a websocket scope as a server makes it; `more` overrides keys."""
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [LOCAL_HOST],
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    } | more


@dataclass
class Played:
    """What an app sent over one connection, and what it raised."""

    messages: list[MutableMapping[str, Any]] = field(default_factory=list)
    error: BaseException | None = None


async def play(app: App, path: str = "/", *sent: str | int, **more: Any) -> Played:
    """Run one connection: the client sends texts and at the end its close code; without one it stays."""
    played = Played()
    coming = iter(sent)
    connected = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal connected
        if not connected:
            connected = True
            return {"type": "websocket.connect"}
        for one in coming:
            if isinstance(one, int):
                return {"type": "websocket.disconnect", "code": one}
            return {"type": "websocket.receive", "text": one}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        played.messages.append(dict(message))

    try:
        await app(socket_scope(path, **more), receive, send)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        played.error = error
    return played


class Connection:
    """A client's connection to a server on 127.0.0.1."""

    status = 0
    """Status of the handshake: 101 if it was accepted."""
    code = 0
    """Close code of the server; 1006 if the connection was lost."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._path = path
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []
        self.headers: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._write(Request(host="127.0.0.1", target=self._path))
        answer = await self._next()
        if isinstance(answer, AcceptConnection):
            self.status = 101
            self.headers = {name.decode(): value.decode() for name, value in answer.extra_headers}
        elif isinstance(answer, RejectConnection):
            self.status = answer.status_code
            self.headers = {name.decode(): value.decode() for name, value in answer.headers}
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def send_and_receive(self, text: str) -> str:
        """Send a text and return the next one; empty if the server closed."""
        self._write(TextMessage(data=text))
        return await self.receive()

    async def receive(self) -> str:
        """Return the next text; empty if the server closed."""
        event = await self._next()
        if isinstance(event, Message):
            return str(event.data)
        self.code = event.code if isinstance(event, CloseConnection) else 1006
        return ""

    async def close(self, code: int = 1000) -> None:
        """Close with a close frame, and wait for the server to close."""
        self._write(CloseConnection(code=code))
        async with asyncio.timeout(60):
            while await self._reader.read(65536):
                pass

    def cut(self) -> None:
        """Break the connection without a close frame."""
        self._writer.transport.abort()

    def _write(self, event: Event) -> None:
        self._writer.write(self._protocol.send(event))

    async def _next(self) -> Event | None:
        async with asyncio.timeout(60):
            while not self._events:
                data = await self._reader.read(65536)
                if not data:
                    return None
                self._protocol.receive_data(data)
                self._events += self._protocol.events()
        return self._events.pop(0)

"""What the workers of an instance exchange at a scrape, over unix sockets in its folder.

Values are in shared memory; prometheus_client's registry and the exemplars are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

import msgspec

from watchkeeper.metrics._store import Exemplar  # noqa: TC001 - msgspec reads the annotations
from watchkeeper.metrics.exposition._third_party import ThirdPartyFamily  # noqa: TC001 - the same

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from watchkeeper.metrics.shared._worker import Worker

_TIMEOUT_S: Final = 0.5
_BACKLOG: Final = 64


class PeerAnswer(msgspec.Struct, array_like=True):
    """What a worker sends to another one that is being scraped."""

    third_party: list[ThirdPartyFamily]
    exemplars: dict[int, Exemplar]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(PeerAnswer).decode


class PeerSocket:
    """Serves the other workers and queries them; `answer` makes this worker's response."""

    def __init__(self, worker: Worker, answer: Callable[[], Awaitable[PeerAnswer]]) -> None:
        self._worker = worker
        self._answer = answer
        self._folder = -1
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Serve the other workers from now on; does nothing while this one is alone."""
        if self._worker.folder is None or self._server is not None:
            return
        self._folder = os.open(self._worker.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):  # left by an earlier worker of this slot
                os.unlink(f"{self._worker.number}.sock", dir_fd=self._folder)
            listener.bind(self._address(self._worker.number))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Stop serving the other workers."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    async def ask_all(self) -> dict[int, PeerAnswer]:
        """Return the responses of the other workers by number, without those that take longer than 0.5 s."""
        if self._server is None:
            return {}
        numbers = sorted(self._worker.running_peers())
        answers = await asyncio.gather(*map(self._ask, numbers))
        return {number: answer for number, answer in zip(numbers, answers, strict=True) if answer is not None}

    async def _ask(self, number: int) -> PeerAnswer | None:
        writer = None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._address(number))
                return _decode(await reader.read())
        except (OSError, TimeoutError, msgspec.MsgspecError):
            return None
        finally:
            if writer is not None:
                writer.close()

    async def _serve(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(_encode(await self._answer()))
            await writer.drain()
        except OSError:
            pass  # the requesting worker has disconnected
        finally:
            writer.close()

    def _address(self, number: int) -> str:
        # Through the folder's descriptor: a socket's address has at most 107 bytes, a path may be longer.
        return f"/proc/self/fd/{self._folder}/{number}.sock"

"""A whole scrape, on the event loop: our own figures, and what only the other workers know.

Values are in shared memory. What is not there (what a worker's prometheus_client registry holds, the figures
of its process among it, and exemplars) each worker tells the others over a unix socket in the instance's
folder when one of them is scraped. A worker that does not answer in time is left out of that part.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from watchkeeper.metrics._store import Exemplar  # noqa: TC001 - the same
from watchkeeper.metrics.exposition._exposition import Exposition
from watchkeeper.metrics.exposition._third_party import ThirdPartyFamily  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from watchkeeper.metrics._registry import Registry

_PATIENCE_S: Final = 0.5
_AT_ONCE_S: Final = 0.001
_BACKLOG: Final = 64


class _Told(msgspec.Struct, array_like=True):
    """What a worker tells another."""

    third_party: list[ThirdPartyFamily]
    exemplars: dict[int, Exemplar]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Told).decode


class Workers:
    """This worker among those of its instance.

    Args:
        registry: What it counts in.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._folder = -1
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Answer the other workers from now on; the registry is shared before.

        Raises:
            OSError: The socket cannot be made.
        """
        if self._registry.folder is None or self._server is not None:
            return
        self._folder = os.open(self._registry.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):  # a predecessor's
                os.unlink(f"{self._registry.worker}.sock", dir_fd=self._folder)
            listener.bind(self._address(self._registry.worker))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(self._answer, sock=listener)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    async def scrape(self, *, openmetrics: bool) -> Exposition:
        """Render the metrics of all workers, without holding up the event loop.

        Args:
            openmetrics: Whether to write OpenMetrics.
        """
        own, told = await asyncio.gather(
            asyncio.to_thread(self._registry.collect_third_party), self._ask_others()
        )
        third_party = [*own, *(family for one in told.values() for family in one.third_party)]
        exemplars = {number: one.exemplars for number, one in told.items()}
        chunks: list[bytes] = []
        since = monotonic()
        for text in self._registry.steps(openmetrics=openmetrics, exemplars=exemplars):
            chunks.append(text.encode())
            if monotonic() - since > _AT_ONCE_S:
                await asyncio.sleep(0)
                since = monotonic()
        written = await asyncio.to_thread(
            self._registry.write_third_party, third_party, openmetrics=openmetrics
        )
        return Exposition.of((*chunks, written.encode()), openmetrics=openmetrics)

    async def _ask_others(self) -> dict[int, _Told]:
        if self._server is None:
            return {}
        numbers = sorted(self._registry.other_workers())
        answers = await asyncio.gather(*map(self._ask, numbers))
        return {number: told for number, told in zip(numbers, answers, strict=True) if told is not None}

    async def _ask(self, number: int) -> _Told | None:
        writer = None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_unix_connection(self._address(number))
                return _decode(await reader.read())
        except (OSError, TimeoutError, msgspec.MsgspecError):
            return None
        finally:
            if writer is not None:
                writer.close()

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            third_party = await asyncio.to_thread(self._registry.collect_third_party)
            writer.write(_encode(_Told(third_party, dict(self._registry.exemplars))))
            await writer.drain()
        except OSError:
            pass  # whoever asked has left
        finally:
            writer.close()

    def _address(self, number: int) -> str:
        # By way of the folder's descriptor: an address has 107 bytes at most, a path may be longer.
        return f"/proc/self/fd/{self._folder}/{number}.sock"

"""Servers on loopback, and load on one server at a time, so that it has the machine to itself."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from bench._rounds import cpu_seconds
from bench._tools import MissingError, find_wrk
from bench._workers import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

CONNECTIONS: Final = 16
_START_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """One round of load: how many requests were answered, in how many seconds and server CPU seconds."""

    requests: int
    seconds: float
    cpu: float

    @property
    def microseconds(self) -> float:
        """The server's CPU time for one request, in µs."""
        return self.cpu / self.requests * 1e6

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class Server:
    """A server process on a free loopback port, which runs until the block ends.

    Args:
        command: Returns the command that serves on a port.
        path: The path that is requested.
        environ: Environment variables to set for it.
    """

    def __init__(
        self, command: Callable[[int], Sequence[str]], path: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._path = path
        self._environ = {**os.environ, **(environ or {})}
        self._port = 0

    @classmethod
    def uvicorn(cls, factory: str, path: str, environ: Mapping[str, str] | None = None) -> Self:
        """Return a server that runs an app of this package under uvicorn, with our event loop and parser."""
        quiet = ("--no-access-log", "--log-level", "warning")
        fast = ("--loop", "uvloop", "--http", "httptools")
        command = [sys.executable, "-m", "uvicorn", "--factory", factory, *quiet, *fast, "--port"]
        return cls(lambda port: [*command, str(port)], path, environ)

    def __enter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._process = subprocess.Popen(
            self._command(self._port), env=self._environ, stdout=subprocess.DEVNULL
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def load(self, duration: timedelta) -> Load:
        """Send requests as fast as the server answers, for this time."""
        used, started = cpu_seconds(self._process.pid), time.monotonic()
        requests = _request(self._port, self._path, duration)
        seconds = time.monotonic() - started
        return Load(requests, seconds, cpu_seconds(self._process.pid) - used)

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return
            time.sleep(0.05)
        raise WorkerError(f"a server of the bench did not answer {self._path}: {self._process.args!r}")

    def _answers(self) -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)) as client:
            try:
                client.request("GET", self._path)
                return client.getresponse().status == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                return False


def _request(port: int, path: str, duration: timedelta) -> int:
    try:
        wrk = find_wrk()
    except MissingError:
        return asyncio.run(_request_with_asyncio(port, path, duration))
    seconds = max(1, round(duration.total_seconds()))
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://127.0.0.1:{port}{path}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counted = re.search(r"(\d+) requests in", shown)
    if counted is None or "Non-2xx" in shown or "Socket errors" in shown:
        raise WorkerError(f"wrk reported errors for {path}: {shown}")
    return int(counted[1])


async def _request_with_asyncio(port: int, path: str, duration: timedelta) -> int:
    """Do what wrk does, but slower."""
    deadline = time.monotonic() + duration.total_seconds()
    request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode()

    async def client() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answered = 0
        while time.monotonic() < deadline:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            if not head.startswith(b"HTTP/1.1 200") or length is None:
                raise WorkerError(f"{path} was answered by {head!r}")
            await reader.readexactly(int(length[1]))
            answered += 1
        writer.close()
        return answered

    return sum(await asyncio.gather(*(client() for _ in range(CONNECTIONS))))

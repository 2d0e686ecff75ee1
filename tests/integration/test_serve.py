"""The library's own entry point: signals, drain, exit codes, and starts that fail."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from support.postgres import PostgresServer

PROGRAM = """
import asyncio, os, sys
from watchkeeper import Watchkeeper, serve
from watchkeeper.server import _protocol

_protocol.HEAD_TIMEOUT_S = float(os.environ.get("HEAD_TIMEOUT", "10"))

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await asyncio.sleep(float(os.environ.get("SLOW_START", "0")))
        raise RuntimeError("no lifespan")
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        print('{"type": "slow"}', flush=True)
        await asyncio.sleep(float(scope["query_string"] or b"0.5"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"done"})

keeper = Watchkeeper("shop", database="DATABASE_URL" in os.environ)
sys.exit(serve(keeper, keeper.wrap(app)))
"""


class Program:
    """A process that serves, and its log lines."""

    def __init__(self, folder: Path, **environ: str) -> None:
        script = folder / "shop.py"
        script.write_text(PROGRAM)
        base = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("METRICS", "WATCHKEEPER"))
        }
        self.process = subprocess.Popen(
            [sys.executable, script],
            env={**base, "PORT": "0", "WATCHKEEPER_STATE_DIR": str(folder), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(json.loads(line) for line in self.process.stdout)

    def wait_for(self, **fields: str) -> dict[str, Any]:
        """Return the first line that has these fields."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for line in list(self.lines):
                if fields.items() <= line.items():
                    return line
            time.sleep(0.01)
        raise AssertionError(f"no line with {fields} in {self.lines}")

    @property
    def url(self) -> str:
        """Where the program listens, once it does."""
        return str(self.wait_for(type="server", status="listening")["url"])

    def errors(self) -> str:
        """Return what the program wrote to stderr."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def finish(self) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(60)
        self._reader.join(60)
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start a program, and end it with the test."""
    started: list[Program] = []

    def starter(**environ: str) -> Program:
        started.append(Program(tmp_path, **environ))
        return started[-1]

    yield starter
    for program in started:
        program.process.kill()
        program.finish()
        for pipe in (program.process.stdout, program.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(start: Callable[..., Program], number: signal.Signals) -> None:
    """A request in flight finishes, every line is written, and the exit code is 0."""
    program = start()
    answers: list[int] = []
    url = program.url
    client = threading.Thread(target=lambda: answers.append(httpx.get(f"{url}/slow?0.8").status_code))
    client.start()
    program.wait_for(type="slow")
    program.process.send_signal(number)
    client.join(60)
    assert program.finish() == 0
    assert answers == [200]
    assert program.lines[-1]["status"] == "stopped"
    assert [line["statusCode"] for line in program.lines if line.get("type") == "request"] == [200]


def test_not_ready_comes_before_the_stop(start: Callable[..., Program]) -> None:
    """During the shutdown delay the service still answers, and reports not ready."""
    program = start(WATCHKEEPER_SHUTDOWN_DELAY="2")
    with httpx.Client(base_url=program.url) as client:
        assert client.get("/readyz").status_code == 200
        program.process.send_signal(signal.SIGTERM)
        program.wait_for(type="server", status="stopping")
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        assert client.get("/").text == "done"
    assert program.finish() == 0


def test_the_grace_period_ends(start: Callable[..., Program]) -> None:
    """A request that does not finish within the grace period does not keep the process alive."""
    program = start(WATCHKEEPER_SHUTDOWN_GRACE="1")
    url = program.url

    def ask() -> None:
        with pytest.raises(httpx.HTTPError, match=r".*"):
            httpx.get(f"{url}/slow?60", timeout=30).raise_for_status()

    client = threading.Thread(target=ask)
    client.start()
    program.wait_for(type="slow")
    began = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    assert program.finish() == 0
    assert time.monotonic() - began < 30
    client.join(60)


def test_a_second_interrupt_does_not_wait(start: Callable[..., Program]) -> None:
    """Ctrl-C twice ends the process without waiting for the drain."""
    program = start(WATCHKEEPER_SHUTDOWN_DELAY="60")
    assert httpx.get(f"{program.url}/").text == "done"
    program.process.send_signal(signal.SIGINT)
    program.wait_for(type="server", status="stopping")
    program.process.send_signal(signal.SIGINT)
    assert program.finish() == 0


def test_a_port_in_use_is_a_sentence(start: Callable[..., Program]) -> None:
    """The error names the address and the fix, without a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        program = start(PORT=port)
        assert program.finish() == 1
    assert program.errors() == (
        f"shop: 127.0.0.1:{port} is in use by another process: end that one, or set PORT to a free port.\n"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_a_foreign_address_is_a_sentence(start: Callable[..., Program], host: str) -> None:
    """The error names the address that this machine does not have, and the setting."""
    program = start(HOST=host)
    assert program.finish() == 1
    said = program.errors()
    assert said.startswith("shop: ")
    assert "HOST" in said
    assert "Traceback" not in said


def test_the_server_and_the_library_write_one_kind_of_line(start: Callable[..., Program]) -> None:
    """Uvicorn's records are JSON lines as well, each written once."""
    program = start()
    assert httpx.get(f"{program.url}/").text == "done"
    program.process.send_signal(signal.SIGTERM)
    assert program.finish() == 0
    keys = [list(line)[:4] for line in program.lines]
    assert keys == [["level", "time", "service", "env"]] * len(keys)
    messages = [line.get("msg") for line in program.lines if line.get("logger", "").startswith("uvicorn")]
    assert messages
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize(
    "garbage",
    [
        b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad\x7f Header: y\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_invalid_requests_get_the_common_error_body(start: Callable[..., Program], garbage: bytes) -> None:
    """Odd methods, broken headers and other protocols get a 400, one count and one line."""
    program = start()
    head, _, body = _exchange(program, garbage).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    error = json.loads(body)["error"]
    assert error["code"] == "bad_request"
    assert f"x-request-id: {error['requestId']}".encode() in head
    line = program.wait_for(type="request", requestId=error["requestId"])
    assert (line["statusCode"], line["route"], line["outcome"]) == (400, "unmatched", "unreadable")
    expected = 'http_requests_total{method="_OTHER",route="unmatched",status="400"} 1.0'
    assert expected in httpx.get(f"{program.url}/metrics").text


def _exchange(program: Program, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send the parts and return everything that comes back until the server closes."""
    host, port = program.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        return b"".join(iter(lambda: client.recv(4096), b""))


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_a_head_that_is_too_large_is_refused(start: Callable[..., Program], pause: float) -> None:
    """Headers cannot fill the memory, in one piece or in many; just below the limit they pass."""
    program = start()
    headers = [b"X-%d: %s\r\n" % (number, b"y" * 6000) for number in range(10)]
    request = [b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", *headers]
    assert _exchange(program, *request, b"\r\n", pause=pause).startswith(b"HTTP/1.1 200 OK\r\n")
    parts = [*request, headers[0]] if pause else [b"".join([*request, headers[0], b"\r\n"])]
    answer = _exchange(program, *parts, pause=pause)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"request_header_fields_too_large"' in answer
    program.wait_for(type="request", outcome="unreadable")


def test_the_head_limit_does_not_apply_to_bodies(start: Callable[..., Program]) -> None:
    """This holds where the body arrives with the head, and for every request of a connection."""
    program = start()
    with httpx.Client(base_url=program.url) as client:
        for _ in range(3):
            assert client.post("/", content=b"z" * 300_000).status_code == 200


def test_the_wait_for_a_head_is_bounded(start: Callable[..., Program]) -> None:
    """Half a head gets a 408; an idle connection is closed without a response."""
    program = start(HEAD_TIMEOUT="0.5")
    answer = _exchange(program, b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow:", b" y\r\n", pause=0.1)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert _exchange(program) == b""
    # The timeout does not apply to a request that is being answered.
    assert httpx.get(f"{program.url}/slow?1.2").status_code == 200


def test_a_pipelined_head_may_wait_for_the_response(start: Callable[..., Program]) -> None:
    """Half a head behind a running request does not end that request."""
    program = start(HEAD_TIMEOUT="0.3")
    request = b"GET /slow?1 HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = _exchange(program, request, b"GET / HTTP/1.1\r\nHost:", pause=0.05)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"HTTP/1.1 408 " in answer


def test_a_broken_body_is_counted_once(start: Callable[..., Program]) -> None:
    """An invalid chunk ends the running request and is not counted as a second one."""
    program = start()
    request = b"POST /slow?0.5 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert _exchange(program, request, b"nonsense\r\n", pause=0.1).startswith(b"HTTP/1.1 400 ")
    program.process.send_signal(signal.SIGTERM)
    assert program.finish() == 0
    assert len([line for line in program.lines if line.get("type") == "request"]) == 1
    assert [line for line in program.lines if "Invalid HTTP" in line.get("msg", "")] == []


@pytest.mark.parametrize("name", ["DATABASE_URL", "SLOW_START"])
def test_a_signal_ends_the_start(start: Callable[..., Program], postgres: PostgresServer, name: str) -> None:
    """SIGTERM ends the start during migrations and during the app's own startup."""
    urls = postgres.create_database()
    value = urls.owner_url if name == "DATABASE_URL" else "60"
    with psycopg.connect(urls.owner_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('watchkeeper_migrations', 0))")
        program = start(**{name: value, "WATCHKEEPER_SHUTDOWN_GRACE": "1"})
        program.wait_for(msg="Waiting for application startup.")
        time.sleep(0.5)
        began = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        assert program.finish() == 0
        assert time.monotonic() - began < 30
    assert program.errors() == ""
    assert not [line for line in program.lines if line.get("status") == "listening"]


def test_a_database_without_its_extra_ends_the_service(start: Callable[..., Program], tmp_path: Path) -> None:
    """A service with a database and without psycopg exits with a message that names the extra."""
    (tmp_path / "psycopg.py").write_text("raise ImportError('gone', name='psycopg')")
    program = start(DATABASE_URL="postgresql://nobody@127.0.0.1:9/none", PYTHONPATH=str(tmp_path))
    assert program.finish() == 1
    assert program.errors().endswith(
        "psycopg is not installed, which this service needs: pip install 'watchkeeper[postgres]'\n"
    )


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/metrics", 200),
        ("http://localhost/metrics", 200),
        ("http://127.0.0.1:3001/metrics", 200),
        ("http://[::1]:3001/metrics", 200),
        ("http://evil.example/metrics", 403),
        ("http://evil.example:80/metrics", 403),
    ],
)
def test_authority_of_absolute_target_counts(start: Callable[..., Program], target: str, status: int) -> None:
    """Host is ignored where the target itself has an address (RFC 9112, 3.2.2)."""
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert _exchange(start(), request.encode()).startswith(f"HTTP/1.1 {status} ".encode())

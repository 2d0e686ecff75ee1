"""Real failures around the service: database, gateway, stdout, and a stop of the service."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.backend import AUTHORIZED, Program, environment, running_program, sign, unique
from support.postgres import PostgresServer


def _wait_for(program: Program, path: str, status: int) -> None:
    """Wait until a path has this status."""
    program.eventually(lambda: program.get(path).status_code == status or None, f"{status} of {path}")


@pytest.fixture
def on_private_server(postgres_private: PostgresServer, tmp_path: Path) -> Iterator[Program]:
    """The program on a database server that the test may stop."""
    urls = postgres_private.create_database("wk_template")
    with running_program(environment(urls, tmp_path), urls) as program:
        yield program.wait_until_ready()


def test_service_recovers_from_a_database_outage(
    on_private_server: Program, postgres_private: PostgresServer
) -> None:
    """`/health` turns, requests get 503 and not 500, and no restart is needed."""
    program = on_private_server
    assert program.get("/health").json() == {"status": "ok", "db": "connected"}
    postgres_private.stop(signal.SIGQUIT)
    _wait_for(program, "/health", 503)
    assert program.get("/health").json() == {"status": "error", "db": "disconnected"}
    assert program.get("/readyz").status_code == 503
    assert program.get("/livez").status_code == 200
    answers = [program.get("/api/listings/search") for _ in range(5)]
    answers.append(program.deliver({"id": unique()}))
    assert [answer.status_code for answer in answers] == [503] * 6
    assert {answer.json()["error"]["requestId"] for answer in answers} == {
        answer.headers["X-Request-ID"] for answer in answers
    }
    samples = program.scrape()
    assert samples.get("db_up") == 0
    assert samples.get("active_sessions") is None
    postgres_private.start()
    _wait_for(program, "/health", 200)
    _wait_for(program, "/api/listings/search", 200)
    assert program.deliver({"id": unique()}).status_code == 200
    assert program.scrape().get("db_up") == 1


def test_hanging_database_does_not_hang_requests(
    on_private_server: Program, postgres_private: PostgresServer
) -> None:
    """A frozen server leads to 503 within the timeouts."""
    program = on_private_server
    postgres_private.freeze()
    try:
        _wait_for(program, "/health", 503)
        assert program.get("/api/listings/search").status_code == 503
        assert program.get("/metrics").status_code == 200
    finally:
        postgres_private.thaw()
    _wait_for(program, "/health", 200)
    _wait_for(program, "/api/listings/search", 200)


@contextlib.contextmanager
def _hanging_gateway() -> Iterator[str]:
    """Listen and accept, and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_hanging_gateway_degrades_health_only(postgres: PostgresServer, tmp_path: Path) -> None:
    """The detailed health answers within its timeout, and readiness does not depend on a gateway."""
    urls = postgres.create_database("wk_template")
    with (
        _hanging_gateway() as gateway,
        running_program(environment(urls, tmp_path, MOLTBOT_GATEWAY_URL=gateway), urls) as program,
    ):
        program.wait_until_ready()
        began = time.monotonic()
        answer = program.get("/health/detailed")
        assert time.monotonic() - began < 30
        assert answer.status_code == 503
        assert answer.json() == {"status": "degraded", "checks": {"db": True, "moltbot": False}}
        assert program.get("/readyz").status_code == 200


def test_closed_stdout_is_survived_and_counted(postgres: PostgresServer, tmp_path: Path) -> None:
    """The service continues and counts the dropped lines."""
    urls = postgres.create_database("wk_template")
    with subprocess.Popen(
        [sys.executable, "-m", "realestate", "serve"],
        env={**os.environ, **environment(urls, tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = ""
        for line in process.stdout:
            found = json.loads(line)
            if found.get("status") == "listening":
                url = found["url"]
                break
        process.stdout.close()
        for _ in range(20):
            assert httpx.get(f"{url}/api/listings/search").status_code == 200
        text = httpx.get(f"{url}/metrics").text
        found = re.findall(r"^log_records_dropped_total\{.*\} (\S+)$", text, re.MULTILINE)
        assert sum(map(float, found)) >= 20
        process.terminate()
        assert process.wait(60) == 0


def test_sigterm_finishes_requests_in_flight(program: Program) -> None:
    """A request whose body still arrives gets its answer and its line, and the exit code is 0."""
    body = json.dumps({"id": unique()}).encode()
    host, port = program.url.removeprefix("http://").split(":")
    head = [f"POST /api/webhooks/moltbot HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"]
    head += [f"{name}: {value}\r\n" for name, value in sign(body).items()]
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall("".join([*head, "\r\n"]).encode() + body[:3])
        time.sleep(1)
        program.process.send_signal(signal.SIGTERM)
        program.wait_for(type="server", status="stopping")
        client.sendall(body[3:])
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert program.stop() == 0
    assert program.lines[-1]["status"] == "stopped"
    assert [
        line["statusCode"] for line in program.lines if line.get("route") == "/api/webhooks/{source}"
    ] == [200]


def test_sigterm_under_load_loses_no_line(program: Program) -> None:
    """Every answered request has its line."""
    answered: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with (
            httpx.Client(base_url=program.url, headers=AUTHORIZED) as client,
            contextlib.suppress(httpx.HTTPError),
        ):
            while not stop.is_set():
                answered.append(client.get("/api/listings/search").headers["X-Request-ID"])

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    time.sleep(1)
    assert program.stop() == 0
    stop.set()
    for client in clients:
        client.join(60)
    logged = {line["requestId"] for line in program.lines if line.get("type") == "request"}
    assert len(answered) > 20
    assert set(answered) - logged == set()

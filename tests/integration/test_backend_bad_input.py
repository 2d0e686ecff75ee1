"""Bad input: a clear status, the error body, nothing internal, no series, one line."""

import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.asgi import fetch
from support.backend import (
    AUTHORIZED,
    InProcess,
    Program,
    environment,
    in_process,
    refusal,
    running_program,
    sign,
    unique,
)
from support.postgres import DatabaseUrls

MEGABYTE = 1024 * 1024
INSIDE = ("Traceback", 'File "', "litestar", "psycopg", "msgspec", "/src/")


def exchange(program: Program, *pieces: bytes, pause: float = 0) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes over a new connection; return status, headers and body of the response."""
    host, port = program.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        for piece in pieces:
            try:
                client.sendall(piece)
            except OSError:  # the server has responded and closed already
                break
            time.sleep(pause)
        return read_answer(client)


def read_answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one response."""
    received = b""
    while b"\r\n\r\n" not in received and (chunk := client.recv(65536)):
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)) and (chunk := client.recv(65536)):
        body += chunk
    return int(first.split()[1]), headers, body


def post(path: str, *headers: str) -> bytes:
    """Return the head of a POST."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: backend", *headers, "\r\n"]).encode("latin-1")


def check_error(status: int, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """Check the error body, and return its error."""
    error: dict[str, Any] = json.loads(body)["error"]
    assert status >= 400
    assert set(error) <= {"code", "message", "requestId", "details"}
    assert error["requestId"] == headers["x-request-id"]
    assert headers["content-type"].startswith("application/json")
    assert not [word for word in INSIDE if word in body.decode()]
    return error


@pytest.fixture
def short_timeout(database_urls: DatabaseUrls, tmp_path: Path) -> Iterator[Program]:
    """The program with half a second for a body."""
    environ = environment(database_urls, tmp_path, REALESTATE_BODY_TIMEOUT="0.5")
    with running_program(environ, database_urls) as program:
        yield program.wait_until_ready()


def resident(program: Program) -> int:
    """Return the program's resident memory in bytes."""
    pages = Path(f"/proc/{program.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def test_announced_100_megabytes_are_refused_at_once(shared_program: Program) -> None:
    """The response comes before the body, even if the body never comes."""
    for path, extra in [
        ("/api/listings", f"Authorization: {AUTHORIZED['Authorization']}"),
        ("/api/webhooks/moltbot", f"X-Webhook-Timestamp: {int(time.time())}"),
    ]:
        answer = exchange(shared_program, post(path, f"Content-Length: {100 * MEGABYTE}", extra))
        assert check_error(*answer)["code"] == "body_too_large"
        assert answer[0] == 413


def test_100_megabytes_in_chunks_are_cut_off(shared_program: Program) -> None:
    """A body without a length is refused at the limit and never held in memory."""
    before = resident(shared_program)
    head = post(
        "/api/listings", "Transfer-Encoding: chunked", f"Authorization: {AUTHORIZED['Authorization']}"
    )
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    answer = exchange(shared_program, head, *[chunk] * (100 * MEGABYTE // 65536))
    assert check_error(*answer)["code"] == "body_too_large"
    assert resident(shared_program) - before < 20 * MEGABYTE


def test_unwanted_body_is_not_read(shared_program: Program) -> None:
    """An unknown path, an unknown source and a missing token are answered without the body."""
    for path, status in [
        ("/nowhere", 404),
        ("/api/webhooks/stranger", 404),
        ("/api/tools/listing.search", 401),
    ]:
        answer = exchange(shared_program, post(path, f"Content-Length: {100 * MEGABYTE}"))
        check_error(*answer)
        assert answer[0] == status, path


def test_slow_body_is_408_and_a_failed_delivery(short_timeout: Program) -> None:
    """Single bytes do not hold a request open; for a webhook it counts as a failure."""
    body = b'{"id":"1"}'
    signed = [f"{name}: {value}" for name, value in sign(body).items()]
    head = post("/api/webhooks/moltbot", f"Content-Length: {len(body)}", *signed)
    answer = exchange(short_timeout, head, *[bytes([byte]) for byte in body], pause=0.2)
    assert check_error(*answer)["code"] == "body_timeout"
    assert answer[0] == 408
    assert short_timeout.scrape().get("webhook_failures_total", source="moltbot") == 1


def test_client_that_leaves_within_its_body_is_no_error(program: Program) -> None:
    """Half a delivery is neither stored nor a 5xx, and there is no traceback."""
    body = b'{"id":"1"}'
    signed = [f"{name}: {value}" for name, value in sign(body).items()]
    request_id = unique("left")
    head = post(
        "/api/webhooks/moltbot", f"Content-Length: {len(body)}", f"X-Request-ID: {request_id}", *signed
    )
    host, port = program.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(head + body[:4])
        time.sleep(0.2)
    assert program.line_of(request_id)["statusCode"] < 500
    samples = program.scrape()
    assert samples.get("webhook_failures_total", source="moltbot") == 0
    assert not [line for line in program.lines if line["level"] in {"error", "fatal"}]


def test_header_injection_makes_no_header(shared_program: Program) -> None:
    """Line breaks in the input, encoded or not, make no header and break no line."""
    request_id = unique("inject")
    for extra in ["X-Request-ID: bad\tid", "X-Request-ID: a%0d%0aSet-Cookie: x=1", "X-Request-ID: \xff"]:
        path = f"/{request_id}/%0d%0aSet-Cookie:%20x=1?next=%0d%0a%0d%0aLocation:"
        status, headers, body = exchange(shared_program, post(path, "Content-Length: 0", extra))
        error = check_error(status, headers, body)
        assert "set-cookie" not in headers
        assert len(error["requestId"]) == 32
    seen = shared_program.eventually(
        lambda: [line for line in list(shared_program.lines) if request_id in line.get("url", "")] or None,
        "its lines",
    )
    assert {line["statusCode"] for line in seen} == {404}


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: b\r\n c: folded\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX-Request-ID: \x7f\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: <script>\r\n\r\n",
        b"POST /api/listings HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_broken_requests_are_refused(shared_program: Program, raw: bytes) -> None:
    """The service goes on."""
    status, _, body = exchange(shared_program, raw)
    assert 400 <= status < 500
    assert not [word for word in INSIDE if word in body.decode("latin-1")]
    assert shared_program.get("/livez").status_code == 200


async def test_ten_thousand_random_paths_make_no_series(backend: InProcess) -> None:
    """A scanner is counted as `unmatched`."""
    chooser = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789/.-_%~"
    await backend.client.get("/nothing")
    before = (await backend.scrape()).series()

    for _ in range(10_000):
        path = "/" + "".join(chooser.choices(letters, k=chooser.randint(1, 60)))
        assert (await fetch(backend.app, path)).status == 404, path
    after = await backend.scrape()
    # The first scrape is a request itself and makes a series.
    assert {labels for name, labels in after.series() - before if name == "http_requests_total"} <= {
        frozenset({"method": "GET", "route": "/metrics", "status": "200"}.items())
    }
    assert after.get("http_requests_total", method="GET", route="unmatched", status="404") == 10_001


async def test_odd_methods_are_405_with_one_label(backend: InProcess) -> None:
    """Methods outside HTTP are `_OTHER` in the metrics."""
    odd = ["PROPFIND", "FOO", "X" * 1000]
    for method in ["PUT", "PATCH", "DELETE", "TRACE", *odd]:
        answer = await backend.client.request(method, "/api/listings")
        assert refusal(answer) == (405, "method_not_allowed"), method
        assert "POST" in answer.headers["Allow"]
    samples = await backend.scrape()
    for method in ("PUT", "PATCH", "DELETE", "TRACE"):
        assert samples.get("http_requests_total", method=method, route="unmatched", status="405") == 1
    assert samples.get("http_requests_total", method="_OTHER", route="unmatched", status="405") == len(odd)


async def test_control_characters_stay_within_their_line(
    backend: InProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever a path, a query or an id holds, each request is one line of JSON."""
    hostile = "".join(f"%{code:02X}" for code in [*range(32), 127]) + "%E2%80%A8%C2%85%ED%A0%80%FF"
    backend.lines(capfd)
    await backend.client.get(f"/{hostile}?q={hostile}")
    await backend.client.get(f"/api/listings/search?text={hostile}")
    await backend.client.post(f"/api/tools/{hostile}", headers=AUTHORIZED)
    await backend.client.post(f"/api/pairing/{hostile}/request", headers=AUTHORIZED, json={"peer_id": "x"})
    await backend.client.post(f"/api/webhooks/{hostile}", content=b"{}", headers=sign(b"{}"))
    assert [line["type"] for line in backend.lines(capfd)] == ["request"] * 5


async def test_every_route_answers_errors_in_one_form(backend: InProcess) -> None:
    """404, 405, 400 and 401 of all routes have the same body, with the request's id."""
    asked = [
        ("GET", "/nothing", {}),
        ("GET", "/api", {}),
        ("GET", "/api/tools/listing.search", {}),
        ("DELETE", "/api/listings", {}),
        ("POST", "/api/listings", {}),
        ("POST", "/api/listings", AUTHORIZED),
        ("GET", "/api/listings/nope", {}),
        ("GET", "/api/listings/search?limit=x", {}),
        ("POST", "/api/pairing/telegram/request", {}),
        ("POST", "/api/pairing/telegram/cancel", AUTHORIZED),
        ("POST", "/api/webhooks/moltbot", {}),
        ("GET", "/schema/nothing", {}),
        ("POST", "/metrics", {}),
        ("GET", "/api/listings/search", {"Host": "<script>"}),
    ]
    for method, path, headers in asked:
        given = {**headers, "X-Request-ID": unique("form")}
        answer = await backend.client.request(method, path, headers=given)
        error = check_error(answer.status_code, dict(answer.headers), answer.content)
        assert error["requestId"] == given["X-Request-ID"], path
        assert error["message"].endswith("."), path


@pytest.mark.parametrize(
    "path",
    [
        "/api/listings",
        "/api/pairing/telegram/request",
        "/api/pairing/telegram/confirm",
        "/api/webhooks/moltbot",
    ],
)
async def test_empty_body_is_400(backend: InProcess, path: str) -> None:
    """The message says what to send, without details."""
    answer = await backend.client.post(path, content=b"", headers={**sign(b""), **AUTHORIZED})
    error = check_error(answer.status_code, dict(answer.headers), answer.content)
    assert (answer.status_code, error["code"]) == (400, "invalid_json")
    assert error["message"] == "The body is empty: send a JSON object."
    assert "details" not in error


async def test_limits_are_settings(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """An operator sets the largest body."""
    environ = environment(database_urls, tmp_path, REALESTATE_BODY_LIMIT="64")
    async with in_process(environ, database_urls) as backend:
        small = await backend.deliver({"id": "1"})
        large = await backend.deliver({"id": "2", "text": "x" * 64})
        assert (small.status_code, large.status_code) == (200, 413)
        assert "64 bytes" in large.json()["error"]["message"]

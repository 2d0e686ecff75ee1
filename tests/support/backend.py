"""The backend for the tests: as the real program in its own process, and in the test's own process."""

import asyncio
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.rows import dict_row

from realestate.app import create_app
from realestate.asgi import ASGIApp
from realestate.monitoring import Backend, build
from support.postgres import DatabaseUrls, PostgresServer

TOKEN: Final = "test-service-token"
SECRET: Final = "test-webhook-secret"
SOURCE: Final = "moltbot"
AUTHORIZED: Final = {"Authorization": f"Bearer {TOKEN}"}
# No one listens on port 9 of loopback: it refuses at once.
DEAD_GATEWAY: Final = "http://127.0.0.1:9"

Found = TypeVar("Found")

_STARTS_WITHIN: Final = 40
_numbers = itertools.count(1)


def unique(prefix: str = "id") -> str:
    """Return a name that is unique in the session."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


def sign(body: bytes, *, secret: str = SECRET, timestamp: float | str | None = None) -> dict[str, str]:
    """Return the headers of a signed delivery, as the README describes them."""
    stamp = timestamp if isinstance(timestamp, str) else str(int(timestamp or time.time()))
    digest = hmac.new(secret.encode(), stamp.encode() + body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "X-Webhook-Timestamp": stamp,
        "X-Webhook-Signature": f"sha256={digest}",
    }


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the error code of a response."""
    return answer.status_code, answer.json()["error"]["code"]


class Samples:
    """The metrics of one scrape, in the text format."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float | None:
        """Return the value of a series, None when there is none."""
        return self._values.get((name, frozenset(labels.items())))

    def total(self, name: str, **labels: str) -> float:
        """Return the sum over all series that have these labels."""
        wanted = labels.items()
        return sum(value for (one, of), value in self._values.items() if one == name and of >= set(wanted))

    def series(self, *names: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """Return the label sets of these metrics; without names, of all."""
        return {key for key in self._values if not names or key[0] in names}


@dataclass(kw_only=True)
class InProcess:
    """The backend in this process: no sockets, a real database, and a client on loopback without a token."""

    backend: Backend
    app: ASGIApp
    client: httpx.AsyncClient
    urls: DatabaseUrls

    def lines(self, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
        """Return the service's new lines, parsed one by one."""
        self.backend.keeper.logging.flush()
        # splitlines also splits at U+2028 and U+0085: a line that holds one is no longer JSON.
        lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        return [line for line in lines if line.get("logger") != "httpx"]  # our client is in this process too

    async def deliver(
        self, event: Mapping[str, Any] | bytes, *, source: str = SOURCE, **signing: Any
    ) -> httpx.Response:
        """Deliver a signed event."""
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        headers = sign(body, **signing)
        return await self.client.post(f"/api/webhooks/{source}", content=body, headers=headers)

    async def call(self, tool: str, arguments: Any = None, **headers: str) -> httpx.Response:
        """Call a tool as the gateway does."""
        given = {**AUTHORIZED, **headers}
        return await self.client.post(f"/api/tools/{tool}", json=arguments or {}, headers=given)

    async def pair(self, channel: str, step: str, **body: str) -> httpx.Response:
        """Request a pairing code, or confirm one."""
        return await self.client.post(f"/api/pairing/{channel}/{step}", json=body, headers=AUTHORIZED)

    async def scrape(self) -> Samples:
        """Return the metrics as Prometheus receives them."""
        answer = await self.client.get("/metrics")
        assert answer.status_code == 200, answer.text
        return Samples(answer.text)

    async def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Query the database as its superuser."""
        return await asyncio.to_thread(rows, self.urls, query, *values)

    async def refuse_audit(self, check: str) -> None:
        """Make the database refuse audit entries that fail `check`."""
        await self.rows(f"ALTER TABLE audit_log ADD CONSTRAINT broken CHECK ({check}) NOT VALID")

    async def entries(self, action: str) -> list[dict[str, Any]]:
        """Return the audit entries of an action, the oldest first."""
        return await self.rows("SELECT * FROM audit_log WHERE action = %s ORDER BY id", action)


def rows(urls: DatabaseUrls, query: str, *values: object) -> list[dict[str, Any]]:
    """Run one statement as the superuser, and return its rows."""
    with psycopg.connect(urls.superuser_url, autocommit=True, row_factory=dict_row) as conn:
        cursor = conn.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []


def environment(urls: DatabaseUrls, folder: Path, **changes: str) -> dict[str, str]:
    """Return the environment of a backend that needs nothing but its database."""
    return {
        "DATABASE_URL": urls.url,
        "DATABASE_OWNER_URL": urls.owner_url,
        "WATCHKEEPER_STATE_DIR": str(folder),
        "MOLTBOT_GATEWAY_URL": DEAD_GATEWAY,
        "SERVICE_TOKEN": TOKEN,
        "WEBHOOK_SECRETS": f"{SOURCE}={SECRET}",
        "HOST": "127.0.0.1",
        "PORT": "0",
        **changes,
    }


@contextlib.asynccontextmanager
async def in_process(environ: Mapping[str, str], urls: DatabaseUrls) -> AsyncIterator[InProcess]:
    """Run the backend in this process, without scheduled retention."""
    service = build(environ)
    app = create_app(service)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
    async with service.keeper.running(), client:
        yield InProcess(backend=service, app=app, client=client, urls=urls)


@pytest.fixture
async def backend(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[InProcess]:
    """The backend in this process, on a fresh database."""
    async with in_process(environment(database_urls, tmp_path), database_urls) as running:
        yield running


@dataclass(kw_only=True)
class Program:
    """`python -m realestate serve`, running: its parsed stdout in `lines`, its stderr in `errors`."""

    process: subprocess.Popen[str]
    urls: DatabaseUrls | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _readers: list[threading.Thread] = field(default_factory=list)
    _url: str = ""

    @classmethod
    def start(cls, environ: Mapping[str, str], urls: DatabaseUrls | None = None) -> Self:
        """Start it without waiting for it."""
        ours = ("METRICS_", "WATCHKEEPER_", "DATABASE_", "REALESTATE_", "APP_", "NODE_", "LOG_")
        base = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        process = subprocess.Popen(
            [sys.executable, "-m", "realestate", "serve"],
            env={**base, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        program = cls(process=process, urls=urls)
        for read in (program._read_lines, program._read_errors):
            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            program._readers.append(reader)
        return program

    @property
    def url(self) -> str:
        """Its URL, once it listens."""
        if not self._url:
            self._url = str(self.wait_for(type="server", status="listening")["url"])
        return self._url

    def wait_for(self, **fields: Any) -> dict[str, Any]:
        """Return the first line that has these fields."""
        return self.eventually(
            lambda: next((line for line in list(self.lines) if fields.items() <= line.items()), None),
            f"a line with {fields}",
        )

    def eventually(
        self, look: Callable[[], Found | None], what: str, within: float = _STARTS_WITHIN
    ) -> Found:
        """Return what `look` finds, as soon as it finds something."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            found = look()
            if found is not None:
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        tail = "\n".join([*map(json.dumps, self.lines[-20:]), *self.errors[-20:]])
        raise AssertionError(f"there was not {what}; exit code {self.process.poll()}; last lines:\n{tail}")

    def wait_until_ready(self) -> Self:
        """Return when it serves and its database is migrated."""
        self.eventually(lambda: self.get("/readyz").status_code == 200 or None, "a ready service")
        return self

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET a path."""
        return httpx.get(f"{self.url}{path}", timeout=60, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """POST to a path."""
        return httpx.post(f"{self.url}{path}", timeout=60, **options)

    def deliver(self, event: Mapping[str, Any], *, source: str = SOURCE, **signing: Any) -> httpx.Response:
        """Deliver a signed event."""
        body = json.dumps(event).encode()
        return self.post(f"/api/webhooks/{source}", content=body, headers=sign(body, **signing))

    def scrape(self) -> Samples:
        """Return the metrics as Prometheus receives them."""
        answer = self.get("/metrics")
        assert answer.status_code == 200, answer.text
        return Samples(answer.text)

    def line_of(self, request_id: str) -> dict[str, Any]:
        """Return the line of a request."""
        return self.wait_for(type="request", requestId=request_id)

    def stop(self, number: signal.Signals = signal.SIGTERM, within: float = 30) -> int:
        """End it, by its process id, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(60)
            raise
        for reader in self._readers:
            reader.join(60)
        return code

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            self.lines.extend(json.loads(line) for line in stream)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self.errors.extend(line.rstrip("\n") for line in stream)


def run_command(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m realestate` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "realestate", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@contextlib.contextmanager
def running_program(environ: Mapping[str, str], urls: DatabaseUrls | None = None) -> Iterator[Program]:
    """Run the program until the end of the block."""
    program = Program.start(environ, urls)
    try:
        yield program
    finally:
        program.stop()


@pytest.fixture
def program(database_urls: DatabaseUrls, tmp_path: Path) -> Iterator[Program]:
    """The real program on a fresh database, ready."""
    with running_program(environment(database_urls, tmp_path), database_urls) as started:
        yield started.wait_until_ready()


@pytest.fixture(scope="session")
def shared_program(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The real program, one for the session: for tests that leave no traces."""
    urls = postgres.create_database("wk_template")
    with running_program(environment(urls, tmp_path_factory.mktemp("backend")), urls) as started:
        yield started.wait_until_ready()
    postgres.drop_database(urls.name)

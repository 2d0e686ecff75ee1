"""Embedded servers for tests: in this process, in others to be killed, and what they leave behind."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from support.postgres import quick_place
from watchkeeper.database.embedded._paths import SUPERUSER
from watchkeeper.database.embedded._server import EmbeddedServer

PROGRAM: Final = Path(__file__).with_name("embedded_process.py")
NAME: Final = "app"
QUICK: Final = {"fsync": "off"}
_TIMEOUT_S: Final = 30.0


@contextlib.asynccontextmanager
async def server_over(state: Path, **options: Any) -> AsyncIterator[EmbeddedServer]:
    """Run a server with the names that all tests use."""
    server = make_server(state, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def make_server(state: Path, **options: Any) -> EmbeddedServer:
    """Return a server that has not been started."""
    return EmbeddedServer(state, **{"name": NAME, "parameters": QUICK, "report": lambda *_: None, **options})


def superuser_url(server: EmbeddedServer) -> str:
    """Return the URL of the server's superuser."""
    return server._names.url(server._paths.sockets, SUPERUSER)


def read_log(server: EmbeddedServer) -> str:
    """Return the server's log."""
    return server._paths.log.read_text()


class Starter:
    """Another process that starts a server with JSON options; `wait_for` reads its lines."""

    def __init__(
        self,
        state: Path,
        *,
        argv: Sequence[str] = (sys.executable,),
        environ: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        spec = json.dumps({"name": NAME, "parameters": QUICK, "state": str(state), **options})
        self.lines: list[dict[str, Any]] = []
        self._unread: deque[dict[str, Any]] = deque()
        self._partial = b""
        self.process = subprocess.Popen(
            [*argv, str(PROGRAM), spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environ or {})},
            bufsize=0,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    @property
    def pid(self) -> int:
        """Its process number."""
        return self.process.pid

    def wait_for(self, event: str, timeout: float = _TIMEOUT_S) -> dict[str, Any]:
        """Return the next line of this kind."""
        end = time.monotonic() + timeout
        while True:
            over = self.process.poll() is not None
            self._read()
            while self._unread:
                line = self._unread.popleft()
                if line["event"] == event:
                    return line
            if over or time.monotonic() > end:
                pytest.fail(f"no {event!r} from the other process, only {self.lines}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let the process stop its server and exit."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"stop\n")
        self.process.wait(_TIMEOUT_S)

    def close(self) -> None:
        """End the process in any state."""
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while chunk := self.process.stdout.read(65536):
            *lines, self._partial = (self._partial + chunk).split(b"\n")
            for line in lines:
                self.lines.append(json.loads(line))
                self._unread.append(self.lines[-1])


def supervisor_of(state: Path) -> int:
    """Return the process number of the supervisor that owns the server."""
    return int((state / "postgres.lock").read_text())


def postmaster_of(state: Path) -> int:
    """Return the process number of the server."""
    return int((state / "data" / "postmaster.pid").read_text().split()[0])


def processes_over(state: Path) -> list[str]:
    """Return the command lines of all processes for this state folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = (entry / "cwd").readlink().is_relative_to(state)
            named = f"{state} " in line or f"{state}/" in line
            if (inside or named) and PROGRAM.name not in line and int(entry.name) != os.getpid():
                found.append(line)
    return found


def wait_until(holds: Callable[[], object], within: float = _TIMEOUT_S, what: str = "") -> float:
    """Wait until a condition holds; return how many seconds that took."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > within:
            pytest.fail(f"not within {within} s: {what}")
        time.sleep(0.01)
    return time.monotonic() - start


async def ask(url: str, question: str, *values: object, within: float = _TIMEOUT_S) -> Any:
    """Return the first value of the first row, retrying while the server is down."""
    end = time.monotonic() + within
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
                cursor = await conn.execute(question, values or None)
                row = await cursor.fetchone() if cursor.description else None
                return row[0] if row else None
        except psycopg.OperationalError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.02)


def copy_of(state: Path, target: Path) -> Path:
    """Return a copy of a stopped server's state folder, with its owners."""
    subprocess.run(["/bin/cp", "-a", state, target], check=True)
    return target


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder with a path short enough for sockets, which every account may enter."""
    folder = Path(tempfile.mkdtemp(prefix="wk-em-", dir=quick_place()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        wait_until(lambda: not processes_over(folder), what=f"all ended: {processes_over(folder)}")
        shutil.rmtree(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for state folders, removed once no process uses it."""
    with short_folder() as made:
        yield made


@pytest.fixture(scope="session")
def made_state() -> Iterator[Path]:
    """An initialised state folder with the table `kept`; tests copy it."""
    with short_folder() as made:
        asyncio.run(_make(made / "state"))
        yield made / "state"


async def _make(state: Path) -> None:
    async with server_over(state) as server:
        await ask(server.owner_url, "CREATE TABLE kept (id int)")
        await ask(server.owner_url, "GRANT SELECT, INSERT ON kept TO app")


@pytest.fixture
def state(folder: Path, made_state: Path) -> Path:
    """A private state folder with data."""
    return copy_of(made_state, folder / "state")


@pytest.fixture
def starter() -> Iterator[Callable[..., Starter]]:
    """Starts processes that are ended with the test; call it with a state folder and options."""
    started: list[Starter] = []

    def start(state: Path, **options: Any) -> Starter:
        started.append(Starter(state, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()

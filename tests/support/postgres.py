"""A real PostgreSQL for the tests: one server per session, one fresh database per test."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

from support.tools import require_postgres
from watchkeeper.database import Database, MigrationSource
from watchkeeper.database._migrations import LIBRARY_MIGRATIONS
from watchkeeper.database.embedded._account import choose_account
from watchkeeper.database.embedded._binaries import find_binaries
from watchkeeper.database.embedded._paths import Paths

OWNER: Final = "keeper_owner"
SERVICE: Final = "keeper"

_PR_SET_PDEATHSIG: Final = 1
_MEMORY: Final = "/dev/shm"  # noqa: S108  # mkdtemp makes a private folder in it
_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0777",
    # Nothing here outlives the session.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "log_min_messages": "fatal",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DatabaseUrls:
    """One database, with the connection strings of the service's role, the owner and the superuser."""

    name: str
    url: str
    owner_url: str
    superuser_url: str


class PostgresServer:
    """A temporary PostgreSQL on a unix socket, from the wheel unless `bin_dir` is given."""

    def __init__(
        self,
        bin_dir: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        standby_of: PostgresServer | None = None,
    ) -> None:
        self._settings = {**_SETTINGS, **(settings or {})}
        # Short, since a socket's path has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="wk-pg-", dir=quick_place()))
        account = choose_account(self.data)
        self._identity: dict[str, Any] = {}
        if account.is_other:
            # PostgreSQL refuses to run as root.
            os.chown(self.folder, account.uid, account.gid)
            self._identity = {"user": account.uid, "group": account.gid, "extra_groups": []}
        self._bin = find_binaries(bin_dir, Paths(state=self.folder), account).folder
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._databases: set[str] = set()
        data = ("-D", str(self.data), "--no-sync")
        if standby_of is None:
            self._run("initdb", *data, "-U", "postgres", "-E", "UTF8", "-A", "trust")
        else:
            self._run("pg_basebackup", *data, "-d", standby_of.url(), "-R", "-c", "fast")

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres", role: str = "postgres") -> str:
        """Return the connection string of a role in a database."""
        return f"postgresql://{role}@/{database}?host={self.folder}"

    def start(self) -> None:
        """Start the server from the main thread, with which it ends, and wait until it answers."""
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, "-k", self.folder, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # one system call, and no lock
                cwd="/",
                **self._identity,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url()).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
                time.sleep(0.02)
            else:
                return

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT in order, SIGQUIT at once, SIGKILL as in a crash."""
        if self._process is not None:
            self._process.send_signal(sign)
            self._process.wait(30)
            self._process = None

    def freeze(self) -> None:
        """Suspend every process of the server: connections stay open, and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the frozen processes."""
        self._signal_all(signal.SIGCONT)

    def terminate_clients(self, role: str = SERVICE) -> None:
        """End every connection of a role, and wait until they are closed."""
        with psycopg.connect(self.url(), autocommit=True) as conn:
            # With a timeout it returns when the process has ended, not when it was signalled.
            conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [role]
            )

    def repair(self) -> None:
        """Resume or start the server, reset the roles, and drop the test's databases."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
        else:
            self._process = None
            self.start()
        for role in (OWNER, SERVICE):
            self.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1 LOGIN").format(sql.Identifier(role)))
            self.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(sql.Identifier(role)))
        while self._databases:
            self.drop_database(self._databases.pop())

    def create_database(self, template: str | None = None) -> DatabaseUrls:
        """Create a database for the owner, empty or as a copy of another."""
        name = f"wk_{next(self._numbers)}"
        self.execute(
            # Without fsync, copying files is three times as fast as WAL.
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(OWNER), sql.Identifier(template or "template0")
            )
        )
        self._databases.add(name)
        return self.urls(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, even with open connections."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def urls(self, name: str) -> DatabaseUrls:
        """Return the connection strings of a database."""
        return DatabaseUrls(
            name=name,
            url=self.url(name, SERVICE),
            owner_url=self.url(name, OWNER),
            superuser_url=self.url(name),
        )

    def execute(self, statement: sql.Composed | sql.SQL, database: str = "postgres") -> None:
        """Run one statement as the superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as conn:
            conn.execute(statement)

    def prepare(self, *, migrated: bool = True) -> None:
        """Create the roles, and the template database with every migration."""
        for role in (OWNER, SERVICE):
            self.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        # As on the embedded server, so that retention sees what it waits for.
        self.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(SERVICE)))
        if migrated:
            self.execute(
                sql.SQL("CREATE DATABASE wk_template OWNER {} TEMPLATE template0").format(
                    sql.Identifier(OWNER)
                )
            )
            asyncio.run(_migrate(self.urls("wk_template")))

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal_all(self, sign: signal.Signals) -> None:
        # The postmaster first, so that no child starts meanwhile; one may end at any time.
        os.kill(self.pid, sign)
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), sign)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **self._identity,
        )
        if done.returncode:
            pytest.fail(f"{program} failed: {done.stderr}")


def backend_migrations() -> list[MigrationSource]:
    """Return the migrations of the backend, if it is there."""
    folder = files("realestate") / "sql" / "migrations"
    return [MigrationSource(name="realestate", folder=folder)] if folder.is_dir() else []


async def _migrate(urls: DatabaseUrls) -> None:
    database = Database(urls.url, owner_url=urls.owner_url)
    await database.migrate(LIBRARY_MIGRATIONS, *backend_migrations())


def quick_place() -> str | None:
    """Return a folder in memory, if there is one with enough space."""
    with contextlib.suppress(OSError):
        status = os.statvfs(_MEMORY)
        roomy = status.f_bavail * status.f_frsize > 2 << 30
        if roomy and not status.f_flag & os.ST_NOEXEC and os.access(_MEMORY, os.W_OK):
            return _MEMORY
    return None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _running(server: PostgresServer, *, migrated: bool = True) -> Iterator[PostgresServer]:
    try:
        server.start()
        server.prepare(migrated=migrated)
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's server, with the template database."""
    yield from _running(PostgresServer())


@pytest.fixture(scope="session")
def postgres_15() -> Iterator[PostgresServer]:
    """The same on PostgreSQL 15, the oldest supported version."""
    yield from _running(PostgresServer(require_postgres(15)))


@pytest.fixture(scope="session")
def _disposable_server() -> Iterator[PostgresServer]:
    yield from _running(PostgresServer())


@pytest.fixture
def postgres_private(_disposable_server: PostgresServer) -> Iterator[PostgresServer]:
    """A separate server to stop, kill and freeze; it is repaired after the test."""
    yield _disposable_server
    _disposable_server.repair()


@pytest.fixture(params=["postgres", "postgres_15"])
def any_postgres(request: pytest.FixtureRequest) -> PostgresServer:
    """Each supported server in turn, for what depends on the version."""
    server: PostgresServer = request.getfixturevalue(request.param)
    return server


def _clone(server: PostgresServer, template: str | None) -> Iterator[DatabaseUrls]:
    urls = server.create_database(template)
    yield urls
    server.drop_database(urls.name)


@pytest.fixture
def database_urls(postgres: PostgresServer) -> Iterator[DatabaseUrls]:
    """A fresh database with every migration applied."""
    yield from _clone(postgres, "wk_template")


@pytest.fixture
def empty_urls(any_postgres: PostgresServer) -> Iterator[DatabaseUrls]:
    """A fresh database with nothing in it, on each supported server."""
    yield from _clone(any_postgres, None)


@pytest.fixture
def any_urls(any_postgres: PostgresServer) -> Iterator[DatabaseUrls]:
    """A fresh database with every migration applied, on each supported server."""
    yield from _clone(any_postgres, "wk_template")


@pytest.fixture
async def database(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    """A fresh database, opened as the service's role."""
    opened = Database(database_urls.url, owner_url=database_urls.owner_url)
    await opened.open()
    yield opened
    await opened.close()

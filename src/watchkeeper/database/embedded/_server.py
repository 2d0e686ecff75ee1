"""`EmbeddedServer`: one PostgreSQL per state folder, shared by the processes that use the folder."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg

from watchkeeper.database.embedded._account import choose_account
from watchkeeper.database.embedded._binaries import Binaries, find_binaries, remove_old_copies
from watchkeeper.database.embedded._failures import explain
from watchkeeper.database.embedded._paths import Paths, folder_error
from watchkeeper.database.embedded._provision import Names, is_temporary, provision
from watchkeeper.database.embedded._spec import make_spec
from watchkeeper.database.embedded._supervisor_process import SupervisorProcess, try_lock
from watchkeeper.exceptions import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from watchkeeper.database.embedded._spec import ServerSpec

_POLL_S: Final = 0.05
_TAKE_OVER_POLL_S: Final = 0.2
_LONGEST_BACK_OFF_S: Final = 15.0
_STABLE_S: Final = 60.0
_T = TypeVar("_T")


class EmbeddedServer:
    """A PostgreSQL server in a state folder, on unix sockets only.

    The first process that starts it owns the server and stops it; later ones attach to it, and one of those
    with `take_over` becomes the next owner. `parameters` override postgresql.conf; `report` gets the level
    and text of events after the start.
    """

    def __init__(  # noqa: PLR0913 - all but the first are options with a name
        self,
        state_dir: Path,
        *,
        name: str,
        bin_dir: Path | None = None,
        parameters: Mapping[str, str] | None = None,
        start_timeout: timedelta = timedelta(minutes=2),
        stop_timeout: timedelta = timedelta(seconds=20),
        take_over: bool = True,
        report: Callable[[str, str], None],
    ) -> None:
        self._names = Names(service=name)
        self._paths = Paths(state=Path(os.path.realpath(state_dir.expanduser())))
        self._given_bin_dir = bin_dir
        self._parameters = dict(parameters or {})
        self._start_timeout = start_timeout.total_seconds()
        self._stop_timeout = stop_timeout
        self._take_over = take_over
        self._report = report
        self._binaries: Binaries | None = None
        self._spec: ServerSpec | None = None
        self._supervisor: SupervisorProcess | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def owner(self) -> bool:
        """Whether this process owns the server now."""
        return self._supervisor is not None

    @property
    def url(self) -> str:
        """URL of the service's role."""
        return self._names.url(self._paths.sockets, self._names.service)

    @property
    def owner_url(self) -> str:
        """URL of the role that owns the database."""
        return self._names.url(self._paths.sockets, self._names.owner)

    @property
    def data_dir(self) -> Path:
        """The data folder."""
        return self._paths.data

    @property
    def bin_dir(self) -> Path:
        """The folder of `psql`, `pg_dump` and `pg_restore`, once the server was started."""
        return _require_started(self._binaries).folder

    async def start(self) -> None:
        """Start the server or attach to it; return when the roles and the database exist."""
        if self._watching is not None:
            return
        try:
            async with asyncio.timeout(self._start_timeout):
                await asyncio.to_thread(self._prepare)
                await self._own_or_attach()
                if self._supervisor is not None:
                    await asyncio.to_thread(remove_old_copies, _require_started(self._binaries), self._paths)
        except TimeoutError:
            await self.stop()
            raise EmbeddedServerError(
                f"The embedded PostgreSQL in {self._paths.state} was not ready within"
                f" {self._start_timeout:g} s: see {self._paths.log}. Recovery after a crash can take longer;"
                " start again."
            ) from None
        except BaseException:
            await self.stop()
            raise
        self._watching = asyncio.create_task(self._watch(), name="watchkeeper-embedded-server")

    async def stop(self) -> None:
        """Stop the server if this process owns it, else detach."""
        watching, self._watching = self._watching, None
        try:
            if watching is not None:
                watching.cancel()
                await asyncio.wait({watching})
        finally:
            await self._close_supervisor()

    def _prepare(self) -> None:
        """Choose account, folders and programs; blocks, so not for the event loop."""
        account = choose_account(self._paths.data)
        self._paths.prepare(account)
        self._binaries = find_binaries(self._given_bin_dir, self._paths, account)
        self._spec = make_spec(self._paths, account, self._binaries, self._parameters, self._stop_timeout)

    async def _own_or_attach(self) -> None:
        while True:
            await self._try_to_own()
            try:
                await provision(self._paths.sockets, self._names)
            except psycopg.Error as error:
                if not is_temporary(error):
                    event = {"stage": "provision", "log": [str(error)]}
                    raise EmbeddedServerError(explain(event, self._paths)) from error
                await asyncio.sleep(_POLL_S)
            else:
                return

    async def _try_to_own(self) -> bool:
        """Start the server unless another process owns it; return whether this one does, once it is ready."""
        if self._supervisor is not None and self._supervisor.has_exited:
            await self._close_supervisor()
        if self._supervisor is not None:
            return True
        try:
            lock_fd = try_lock(self._paths.lock)
        except OSError as error:
            raise folder_error(self._paths.state, error) from error
        if lock_fd is None:
            return False
        try:
            self._supervisor = await SupervisorProcess.start(lock_fd, _require_started(self._spec))
        except OSError as error:
            raise EmbeddedServerError(
                f"The process that runs the embedded PostgreSQL cannot be started ({error})."
            ) from error
        while event := await self._supervisor.next_event():
            if event["event"] == "ready":
                return True
            if event["event"] == "failed":
                await self._close_supervisor()
                raise EmbeddedServerError(explain(event, self._paths))
        stray_lines = list(self._supervisor.stray_lines)
        await self._close_supervisor()
        if stray_lines:
            raise EmbeddedServerError(explain({"stage": "supervisor", "log": stray_lines}, self._paths))
        raise EmbeddedServerError(
            f"The process that runs the embedded PostgreSQL in {self._paths.state} was killed while it"
            " started: start again."
        )

    async def _close_supervisor(self) -> None:
        if self._supervisor is not None:
            await self._supervisor.close()  # if this is cancelled, stop() closes it
            self._supervisor = None

    async def _watch(self) -> None:
        """Report the events of our server; when no process owns one, take over."""
        wait, reported = _TAKE_OVER_POLL_S, ""
        while True:
            if self._supervisor is not None:
                since = time.monotonic()
                await self._follow(self._supervisor)
                await self._close_supervisor()
                self._report("warn", "The process that runs the embedded PostgreSQL was killed.")
                wait = _TAKE_OVER_POLL_S if time.monotonic() - since > _STABLE_S else wait * 2
            if not self._take_over:
                return
            await asyncio.sleep(min(wait, _LONGEST_BACK_OFF_S))
            try:
                if await self._try_to_own():
                    self._report("info", "This process now owns the embedded PostgreSQL.")
                else:
                    wait = _TAKE_OVER_POLL_S
                reported = ""
            except EmbeddedServerError as error:
                if str(error) != reported:
                    reported = str(error)
                    self._report("error", f"The embedded PostgreSQL cannot be started: {reported}")
                wait = min(wait * 2, _LONGEST_BACK_OFF_S)

    async def _follow(self, process: SupervisorProcess) -> None:
        """Report the events of our server until its supervisor ends."""
        down_since: float | None = None
        while event := await process.next_event():
            if event["event"] == "ready" and down_since is not None:
                seconds = time.monotonic() - down_since
                self._report("info", f"The embedded PostgreSQL is back after {seconds:.1f} s.")
                down_since = None
            elif event["event"] != "ready":
                down_since = time.monotonic() if event["event"] == "down" else down_since
                self._report("error", explain(event, self._paths))


def _require_started(value: _T | None) -> _T:
    if value is None:
        raise EmbeddedServerError("The embedded PostgreSQL was not started: await start() first.")
    return value

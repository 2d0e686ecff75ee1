"""The keeper's database: embedded or real, opened, migrated, and waited for while it is away.

A server that cannot be reached when the service starts is no reason to crash: the service starts not ready
and this module goes on trying. A database that must not be used (newer than the code, a migration that fails)
is a reason.

Lines: `{type: "database", status}`: opened, migrated, waiting, weak, refused, or server for what happens to
the embedded one.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from watchkeeper.exceptions import DatabaseUnavailableError, MigrationError, needing
from watchkeeper.health import DATABASE_CHECK
from watchkeeper.settings import Secret

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from watchkeeper.database import Database, MigrationSource
    from watchkeeper.database.embedded import EmbeddedServer
    from watchkeeper.settings import Settings


_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 2.0


class Report(Protocol):
    """Writes one line of the keeper's own."""

    def __call__(self, level: str, /, **fields: Any) -> None:
        """Write `fields` at `level`."""


class Storage:
    """Opens the database of a service and keeps it open.

    Args:
        settings: Which server: `database_url`, or else the embedded one below `service_dir`.
        migrations: Sources applied in this order after the library's own.
        report: Where the lines go.
    """

    def __init__(self, settings: Settings, migrations: Sequence[MigrationSource], report: Report) -> None:
        self._settings = settings
        self._migrations = tuple(migrations)
        self._report = report
        self._server: EmbeddedServer | None = None
        self._database: Database | None = None
        self._opening: asyncio.Task[None] | None = None
        self._migrated = asyncio.Event()

    @property
    def database(self) -> Database:
        """The opened database.

        Raises:
            DatabaseUnavailableError: It was not opened yet.
        """
        if self._database is None:
            raise DatabaseUnavailableError("The database is not open: the keeper has not been started.")
        return self._database

    @property
    def check(self) -> DatabaseCheck:
        """The health check of the database."""
        return DatabaseCheck(self.ping)

    @property
    def server(self) -> EmbeddedServer | None:
        """The embedded server, when it is the one in use."""
        return self._server

    @property
    def owner_url(self) -> Secret:
        """How the owner of the tables connects: for the server's own programs."""
        settings = self._settings
        if self._server is not None:
            return Secret(self._server.owner_url)
        url = settings.database_owner_url or settings.database_url
        if url is None:
            raise DatabaseUnavailableError("The embedded server is not running: open the storage first.")
        return url

    @property
    def migrated(self) -> bool:
        """Whether this process has seen all its migrations applied."""
        return self._migrated.is_set()

    def free_space(self) -> tuple[int, int] | None:
        """Return how many bytes are free and how many there are on the disk of the embedded server.

        None for another server, and where that disk cannot be asked.
        """
        if self._server is None:
            return None
        try:
            usage = shutil.disk_usage(self._server.data_dir)
        except OSError:
            return None
        return usage.free, usage.total

    async def wait_until_migrated(self) -> None:
        """Return as soon as the tables can be used."""
        await self._migrated.wait()

    async def ping(self) -> None:
        """Ask the database for a sign of life.

        Raises:
            DatabaseUnavailableError: There is none.
        """
        await self.database.ping()

    async def open(self, *, migrate: bool = True, take_over: bool = True) -> None:
        """Start the server if it is the embedded one, open the pool and migrate.

        A server that cannot be reached is waited for in the background.

        Args:
            migrate: False leaves the tables as they are, for commands that bring a backup back.
            take_over: Whether to go on with the embedded server when the process that owns it ends; False for
                commands, which end soon themselves.

        Raises:
            EmbeddedServerError: The embedded server cannot start.
            MigrationError: The database may not be used with this code.
        """
        self._database = await self._connect(take_over=take_over)
        await self._database.open()
        if migrate and not await self._try_to_migrate():
            self._report("warn", type="database", status="waiting")
            self._opening = asyncio.create_task(self._migrate_when_reachable(), name="watchkeeper-migrate")

    async def close(self) -> None:
        """Close the pool, then let go of the embedded server."""
        if self._opening is not None:
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opening
        if self._database is not None:
            await self._database.close()
        if self._server is not None:
            await self._server.stop()
        self._database = self._server = self._opening = None
        self._migrated.clear()

    async def _connect(self, *, take_over: bool) -> Database:
        with needing("postgres"):
            from watchkeeper.database import Database  # noqa: PLC0415 - a service without one needs no psycopg

        settings = self._settings
        if settings.database_url is not None:
            return Database(
                settings.database_url,
                owner_url=settings.database_owner_url,
                prepared_statements=settings.prepared_statements,
            )
        with needing("embedded"):
            from watchkeeper.database.embedded import EmbeddedServer  # noqa: PLC0415 - the same

        name = settings.service.replace("-", "_")
        self._server = EmbeddedServer(
            settings.service_dir,
            database=name,
            service_role=name,
            owner_role=f"{name}_owner",
            bin_dir=settings.postgres_bin,
            take_over=take_over,
            report=self._report_server,
        )
        await self._server.start()
        return Database(self._server.url, owner_url=self._server.owner_url)

    def _report_server(self, level: str, sentence: str) -> None:
        self._report(level, type="database", status="server", msg=sentence)

    async def _try_to_migrate(self) -> bool:
        try:
            await self.migrate()
        except DatabaseUnavailableError:
            return False
        return True

    async def migrate(self) -> list[str]:
        """Apply what the database lacks of the library's migrations and the service's.

        Returns:
            What was applied.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
            MigrationError: The database may not be used with this code.
        """
        applied = await self.database.migrate(*self._sources())
        for warning in self.database.warnings:
            self._report("warn", type="database", status="weak", msg=warning)
        if applied:
            self._report("info", type="database", status="migrated", applied=[str(one) for one in applied])
        self._report("info", type="database", status="opened", embedded=self._server is not None)
        self._migrated.set()
        return applied

    async def pending(self) -> bool:
        """Say whether the database lacks a migration.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
        """
        return await self.database.pending(*self._sources())

    def _sources(self) -> list[MigrationSource]:
        from watchkeeper.database import LIBRARY_MIGRATIONS  # noqa: PLC0415 - as above

        return [LIBRARY_MIGRATIONS, *self._migrations]

    async def _migrate_when_reachable(self) -> None:
        wait = _FIRST_WAIT_S
        try:
            while not await self._try_to_migrate():
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT_S)
        except MigrationError as error:
            # The service already runs: it stays not ready, and the line says what the operator has to do.
            self._report("fatal", type="database", status="refused", msg=str(error))


class DatabaseCheck:
    """Asks the database for a sign of life.

    Args:
        ping: Asks it.
    """

    name: Final = DATABASE_CHECK
    timeout: Final = timedelta(seconds=1)
    # With the time-out, well within the two seconds in which an outage must show.
    ttl: Final = timedelta(milliseconds=500)

    def __init__(self, ping: Callable[[], Awaitable[None]]) -> None:
        self._ping = ping

    async def __call__(self) -> None:
        """Raise when there is none."""
        await self._ping()

"""The database of a service: opens it, migrates it, and waits for it while it cannot be reached.

A database that must not be used (newer than the code, a failed migration) stops the start.

Lines: `{type: "database", status}`, where status is `opened`, `migrated`, `waiting`, `excess_privilege`,
`refused`, or `server` for events of the embedded server.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING, Final

from watchkeeper.database._database import Database
from watchkeeper.database._migrations import LIBRARY_MIGRATIONS
from watchkeeper.exceptions import DatabaseUnavailableError, MigrationError
from watchkeeper.settings import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from watchkeeper.database._migrations import MigrationSource
    from watchkeeper.database.embedded._server import EmbeddedServer
    from watchkeeper.settings import Settings

_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 2.0


class DatabaseService:
    """An external server or the embedded one; `report(level, **fields)` writes a log line."""

    def __init__(
        self, settings: Settings, migrations: Sequence[MigrationSource], report: Callable[..., None]
    ) -> None:
        self._settings = settings
        self._sources = (LIBRARY_MIGRATIONS, *migrations)
        self._report = report
        self.server: EmbeddedServer | None = None  # the embedded one, if it is in use
        self._database: Database | None = None
        self._migrating: asyncio.Task[None] | None = None
        self._migrated = asyncio.Event()

    @property
    def database(self) -> Database:
        """The opened database; `DatabaseUnavailableError` before it is opened."""
        if self._database is None:
            raise DatabaseUnavailableError("The database is not open: start the keeper first.")
        return self._database

    @property
    def owner_url(self) -> Secret:
        """The URL of the tables' owner, for PostgreSQL's own programs."""
        if self.server is not None:
            return Secret(self.server.owner_url)
        url = self._settings.database_owner_url or self._settings.database_url
        if url is None:
            raise DatabaseUnavailableError("The embedded server is not running: open the database first.")
        return url

    @property
    def migrated(self) -> bool:
        """Whether this process has seen all its migrations applied."""
        return self._migrated.is_set()

    def free_space(self) -> tuple[int, int] | None:
        """Return the free and the total bytes of the embedded server's disk; None where they are unknown."""
        if self.server is None:
            return None
        try:
            usage = shutil.disk_usage(self.server.data_dir)
        except OSError:
            return None
        return usage.free, usage.total

    async def wait_until_migrated(self) -> None:
        """Return as soon as the tables can be used."""
        await self._migrated.wait()

    async def ping(self) -> None:
        """Raise `DatabaseUnavailableError` when the database does not answer."""
        await self.database.ping()

    async def open(self, *, migrate: bool = True, take_over: bool = True) -> None:
        """Start the embedded server if it is in use, open the pool, and migrate as soon as that is possible.

        Without `migrate` the tables are left as they are, to restore a backup. With `take_over` this process
        runs the embedded server after its owner ends; commands, which end soon themselves, do not.
        """
        self._database = await self._connect(take_over=take_over)
        await self._database.open()
        if migrate and not await self._try_to_migrate():
            self._report("warn", type="database", status="waiting")
            self._migrating = asyncio.create_task(self._migrate_when_reachable(), name="watchkeeper-migrate")

    async def close(self) -> None:
        """Close the pool, then stop or leave the embedded server."""
        if self._migrating is not None:
            self._migrating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._migrating
        if self._database is not None:
            await self._database.close()
        if self.server is not None:
            await self.server.stop()
        self._database = self.server = self._migrating = None
        self._migrated.clear()

    async def migrate(self) -> list[str]:
        """Apply the missing migrations, the library's before the service's, and return their names."""
        applied = await self.database.migrate(*self._sources)
        for warning in self.database.warnings:
            self._report("warn", type="database", status="excess_privilege", msg=warning)
        if applied:
            self._report("info", type="database", status="migrated", applied=applied)
        self._report("info", type="database", status="opened", embedded=self.server is not None)
        self._migrated.set()
        return applied

    async def pending(self) -> bool:
        """Return whether the database lacks a migration."""
        return await self.database.pending(*self._sources)

    async def _connect(self, *, take_over: bool) -> Database:
        settings = self._settings
        if settings.database_url is not None:
            return Database(
                settings.database_url,
                owner_url=settings.database_owner_url,
                prepared_statements=settings.prepared_statements,
            )
        # Imported here because it takes 15 ms, which a service with an external server saves.
        from watchkeeper.database.embedded._server import EmbeddedServer  # noqa: PLC0415

        self.server = EmbeddedServer(
            settings.service_dir,
            name=settings.service.replace("-", "_"),
            bin_dir=settings.postgres_bin,
            take_over=take_over,
            report=lambda level, text: self._report(level, type="database", status="server", msg=text),
        )
        await self.server.start()
        return Database(self.server.url, owner_url=self.server.owner_url)

    async def _try_to_migrate(self) -> bool:
        try:
            await self.migrate()
        except DatabaseUnavailableError:
            return False
        return True

    async def _migrate_when_reachable(self) -> None:
        wait = _FIRST_WAIT_S
        try:
            while not await self._try_to_migrate():
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT_S)
        except MigrationError as error:
            # The service runs already: it stays not ready, and the line tells the operator what to do.
            self._report("fatal", type="database", status="refused", msg=str(error))

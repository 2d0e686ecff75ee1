"""The house that a keeper keeps: its database, what is retained in it, and the schedule of both.

Without policies it is a database only; with `WATCHKEEPER_RETENTION=off` nothing is scheduled, and the
operator's commands still work.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import ConfigurationError, DatabaseUnavailableError, needing
from watchkeeper.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from watchkeeper.database import MigrationSource
    from watchkeeper.logs import Logging
    from watchkeeper.metrics import Registry
    from watchkeeper.retention import Archive, Policy, Retention, RetentionMetrics
    from watchkeeper.settings import Settings

_LOOK_EVERY_S: Final = 60.0


class House:
    """Opens, keeps and closes what outlives a request.

    Args:
        settings: Which database, which time zone, and whether retention is scheduled.
        migrations: The service's own, applied after the library's.
        policies: What is kept how long.
        archive: Where rows go that are archived; default: the folder that the settings name.
        registry: Where the metrics of retention are declared.
        logging: Where the lines go.

    Raises:
        PolicyRefusedError: A policy may not be declared.
    """

    def __init__(  # noqa: PLR0913 - one of each part that the house is made of
        self,
        settings: Settings,
        *,
        migrations: Sequence[MigrationSource],
        policies: Sequence[Policy],
        archive: Archive | None,
        registry: Registry,
        logging: Logging,
    ) -> None:
        self._settings = settings
        self._logging = logging
        self.storage = Storage(settings, migrations, logging.event)
        self._policies = tuple(policies)
        self._archive = archive
        self._metrics: RetentionMetrics | None = None
        if policies:
            # Here and below: a service without retention needs neither psycopg nor cronsim.
            with needing("postgres"):
                from watchkeeper.retention import RetentionMetrics, check_policies  # noqa: PLC0415

            self._policies = check_policies(self._policies)
            self._metrics = RetentionMetrics(registry, self._policies)
        self._audit = AuditWatch(self.storage, registry, logging)
        self._retention: Retention | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def retention(self) -> Retention:
        """The retention of this service.

        Raises:
            ConfigurationError: No policy is declared, or the house is not open.
        """
        if self._retention is None:
            raise ConfigurationError(
                "There is no retention: declare policies, and use it while the keeper runs."
            )
        return self._retention

    @property
    def is_kept(self) -> bool:
        """Whether retention is scheduled in this process."""
        return self._keeping is not None

    async def open(self, *, migrate: bool = True, take_over: bool = True) -> None:
        """Open the database.

        Args:
            migrate: False leaves the tables as they are.
            take_over: Whether to go on with an embedded server whose owner ends.

        Raises:
            EmbeddedServerError: The embedded server cannot start.
            MigrationError: The database may not be used with this code.
        """
        await self.storage.open(migrate=migrate, take_over=take_over)
        await self._audit.look()
        if self._metrics is not None:
            from watchkeeper.retention import (  # noqa: PLC0415
                FolderArchive,
                Retention,
                Schedule,
            )

            archive = self._archive
            if archive is None:
                archive = FolderArchive(self._settings.archive_folder)
            self._retention = Retention(
                database=self.storage.database,
                policies=self._policies,
                schedule=Schedule(timezone=self._settings.retention_timezone),
                metrics=self._metrics,
                logging=self._logging,
                limits=self._settings.retention_limits,
                free_space=self.storage.free_space,
                archive=archive,
            )

    def keep(self) -> None:
        """Prune what is due, from now on and in the background."""
        if self._retention is not None and self._settings.retention:
            self._keeping = asyncio.create_task(self._keep(), name="watchkeeper-house")

    async def close(self) -> None:
        """End the background work, which hands over a run that is going on, and close the database."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        if self._retention is not None:
            await self._retention.backlog.close()
        self._keeping = self._retention = None
        await self.storage.close()

    @property
    def refreshes(self) -> list[Callable[[], Awaitable[None]]]:
        """What sets the gauges that the database knows better than this process."""
        return [self._refresh_retention, self._audit.look]

    async def _refresh_retention(self) -> None:
        if self._retention is not None:
            with contextlib.suppress(DatabaseUnavailableError):  # db_up tells that
                await self._retention.refresh_metrics()

    async def _keep(self) -> None:
        from watchkeeper.retention import Scheduler  # noqa: PLC0415

        await self.storage.wait_until_migrated()
        await Scheduler(self.retention).run()


class AuditWatch:
    """Looks whether the audit log is still append-only: its owner can undo that, and is not to do it unseen.

    Lines: `{type: "audit", status: "unprotected" | "protected"}`, when it changes.

    Args:
        storage: Where the audit log is.
        registry: Where `audit_log_protected` is declared.
        logging: Where the lines go.
    """

    def __init__(self, storage: Storage, registry: Registry, logging: Logging) -> None:
        self._storage = storage
        self._logging = logging
        self._protected = registry.gauge(
            "audit_log_protected", "Whether the database refuses changes of the audit log (1) or not (0)."
        )
        self._findings: list[str] = []
        self._looked_at = -_LOOK_EVERY_S

    async def look(self) -> None:
        """Look, unless it was looked lately or there is nothing to look at yet."""
        if not self._storage.migrated or time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        from watchkeeper.audit import protection  # noqa: PLC0415 - needs psycopg

        try:
            async with self._storage.database.connection() as conn:
                findings = await protection(conn)
        except DatabaseUnavailableError:
            self._protected.clear()  # unknown is not the same as well
            return
        self._looked_at = time.monotonic()
        self._protected.set(float(not findings))
        if findings != self._findings:
            self._tell(findings)
        self._findings = findings

    def _tell(self, findings: list[str]) -> None:
        for finding in findings:
            self._logging.event("error", type="audit", status="unprotected", msg=finding)
        if not findings:
            self._logging.event("info", type="audit", status="protected")

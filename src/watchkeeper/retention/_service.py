"""Retention as a part of a service: built when the database opens, scheduled while the service runs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention._metrics import RetentionMetrics
from watchkeeper.retention._policy import check_policies
from watchkeeper.retention._retention import Retention
from watchkeeper.retention._schedule import Schedule
from watchkeeper.retention._scheduler import Scheduler
from watchkeeper.retention.archive._folder import FolderArchive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from watchkeeper.database._service import DatabaseService
    from watchkeeper.logs._logging import Logging
    from watchkeeper.metrics._registry import Registry
    from watchkeeper.retention._policy import Policy
    from watchkeeper.retention.archive._archive import Archive
    from watchkeeper.settings import Settings


class RetentionService:
    """Runs the retention policies of a service on the database that `database` opens."""

    def __init__(  # noqa: PLR0913 - composition root
        self,
        policies: Sequence[Policy],
        settings: Settings,
        database: DatabaseService,
        archive: Archive | None,
        *,
        registry: Registry,
        logging: Logging,
    ) -> None:
        self._settings = settings
        self._policies = check_policies(policies)
        self._archive = FolderArchive(settings.archive_folder) if archive is None else archive
        self._database = database
        self._metrics = RetentionMetrics(registry, self._policies)
        self._logging = logging
        self._running: asyncio.Task[None] | None = None
        self.retention: Retention | None = None

    @property
    def is_running(self) -> bool:
        """Whether runs are scheduled in this process."""
        return self._running is not None

    def open(self) -> None:
        """Build the retention once the database is open."""
        self.retention = Retention(
            database=self._database.database,
            policies=self._policies,
            schedule=Schedule(timezone=self._settings.retention_timezone),
            metrics=self._metrics,
            logging=self._logging,
            limits=self._settings.retention_limits,
            archive=self._archive,
            free_space=self._database.free_space,
        )

    def start(self) -> None:
        """Run what is due in the background, unless scheduled runs are disabled."""
        if self.retention is not None and self._settings.retention:
            self._running = asyncio.create_task(self._run(self.retention), name="watchkeeper-retention")

    async def close(self) -> None:
        """Stop the background work; a run in progress is closed so that another replica can continue it."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        if self.retention is not None:
            await self.retention.backlog.close()
        self._running = self.retention = None

    async def refresh_metrics(self) -> None:
        """Set the gauges that only the database knows."""
        if self.retention is not None:
            with contextlib.suppress(DatabaseUnavailableError):  # db_up reports that
                await self.retention.refresh_metrics()

    async def _run(self, retention: Retention) -> None:
        await self._database.wait_until_migrated()
        await Scheduler(retention).run()

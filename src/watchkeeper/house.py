"""The house that a keeper keeps: its database, what is retained in it, and the schedule of both.

Without policies it is a database only; with `WATCHKEEPER_RETENTION=off` nothing is scheduled, and the
operator's commands still work.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from watchkeeper.database import MigrationSource
    from watchkeeper.logs import Logging
    from watchkeeper.metrics import Registry
    from watchkeeper.retention import Policy, Retention, RetentionMetrics
    from watchkeeper.settings import Settings


class House:
    """Opens, keeps and closes what outlives a request.

    Args:
        settings: Which database, which time zone, and whether retention is scheduled.
        migrations: The service's own, applied after the library's.
        policies: What is kept how long.
        registry: Where the metrics of retention are declared.
        logging: Where the lines go.

    Raises:
        PolicyRefusedError: A policy may not be declared.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        migrations: Sequence[MigrationSource],
        policies: Sequence[Policy],
        registry: Registry,
        logging: Logging,
    ) -> None:
        self._settings = settings
        self._logging = logging
        self.storage = Storage(settings, migrations, logging.event)
        self._policies = tuple(policies)
        self._metrics: RetentionMetrics | None = None
        if policies:
            # Here and below: a service without retention needs neither psycopg nor cronsim.
            from watchkeeper.retention import RetentionMetrics, check_policies  # noqa: PLC0415

            self._policies = check_policies(self._policies)
            self._metrics = RetentionMetrics(registry, self._policies)
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

    async def open(self, *, migrate: bool = True) -> None:
        """Open the database.

        Args:
            migrate: False leaves the tables as they are.

        Raises:
            EmbeddedServerError: The embedded server cannot start.
            MigrationError: The database may not be used with this code.
        """
        await self.storage.open(migrate=migrate)
        if self._metrics is not None:
            from watchkeeper.retention import Retention  # noqa: PLC0415
            from watchkeeper.schedule import Schedule  # noqa: PLC0415

            self._retention = Retention(
                database=self.storage.database,
                policies=self._policies,
                schedule=Schedule(timezone=self._settings.retention_timezone),
                metrics=self._metrics,
                logging=self._logging,
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
        self._keeping = self._retention = None
        await self.storage.close()

    async def refresh_metrics(self) -> None:
        """Set the gauges that the database knows better than this process."""
        if self._retention is not None:
            await self._retention.refresh_metrics()

    async def _keep(self) -> None:
        from watchkeeper.schedule import Scheduler  # noqa: PLC0415

        await self.storage.wait_until_migrated()
        await Scheduler(self.retention).run()

"""The keeper: joins logs, metrics, health, database and retention, and wraps them around an ASGI app."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.exceptions import ConfigurationError, MetricError, WatchkeeperError, require_extra
from watchkeeper.health._database import DATABASE_CHECK, DatabaseCheck
from watchkeeper.health._runner import CheckRunner
from watchkeeper.http._endpoints import Endpoints
from watchkeeper.http._lifespan import Lifespan
from watchkeeper.http._local import is_loopback
from watchkeeper.http._middleware import Middleware
from watchkeeper.http._recorder import RecorderConfig
from watchkeeper.http.routes._resolve import resolver_for
from watchkeeper.logs import Redactor
from watchkeeper.logs._exceptions import describe_exception
from watchkeeper.logs._logging import Logging
from watchkeeper.logs.output._sink import DROP_REASONS, Sink
from watchkeeper.metrics import Registry
from watchkeeper.metrics._http import HttpMetrics
from watchkeeper.metrics._websockets import WebsocketMetrics
from watchkeeper.metrics.exposition._service import MetricsService
from watchkeeper.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from typing import Literal

    from watchkeeper.audit._watch import AuditWatch
    from watchkeeper.database import Database, MigrationSource
    from watchkeeper.database._service import DatabaseService
    from watchkeeper.health import Check, CheckResult
    from watchkeeper.http._asgi import ASGIApp, Scope
    from watchkeeper.retention import Archive, Policy, Retention
    from watchkeeper.retention._service import RetentionService
    from watchkeeper.settings import Secret


class Watchkeeper:
    """Monitors one service and runs its data retention.

    Args:
        service: Name of the service, in every log line and as the name of its state folder.
        settings: The operator's settings; default: read from the environment.
        database: Whether the service has a PostgreSQL database (`DATABASE_URL`, else the embedded one);
            default: only with policies or migrations.
        migrations: The service's own migrations, applied after the library's.
        checks: Dependencies that `/health/detailed` checks besides the database.
        retention: Policies that say how long the rows of a table are kept.
        archive: Where policies that archive write their rows first; default: the folder of the settings.
        duration_unit: Unit of the HTTP duration histogram and of its name: "s" or "ms".
        duration_buckets: Upper bounds of that histogram, in its unit; default: the library's.
        secrets: Values to redact from all log lines, besides those of the settings.
        lines_to: File descriptor of the log; default stdout.

    Raises:
        ConfigurationError: A setting is not usable, or an extra is not installed.
        PolicyRefusedError: A policy is not allowed.
    """

    def __init__(  # noqa: PLR0913 - composition root
        self,
        service: str,
        *,
        settings: Settings | None = None,
        database: bool | None = None,
        migrations: Sequence[MigrationSource] = (),
        checks: Iterable[Check] = (),
        retention: Sequence[Policy] = (),
        archive: Archive | None = None,
        duration_unit: Literal["s", "ms"] = "s",
        duration_buckets: Sequence[float] | None = None,
        secrets: Iterable[Secret] = (),
        lines_to: int = 1,
    ) -> None:
        self.settings: Final = Settings.from_env(service) if settings is None else settings
        if database is False and (retention or migrations):
            raise ConfigurationError("Retention and migrations need a database: leave out database=False.")
        self.registry: Final = Registry(
            on_error=self._log_metric_error, max_series=self.settings.metrics_max_series
        )
        self.counter: Final = self.registry.counter
        self.gauge: Final = self.registry.gauge
        self.histogram: Final = self.registry.histogram
        dropped = self.registry.counter(
            "log_records_dropped_total",
            "Log lines that could not be written, by reason.",
            ("reason",),
            known=[{"reason": reason} for reason in DROP_REASONS],
        )
        self.logging: Final = Logging(
            service=self.settings.service,
            env=self.settings.env,
            level=self.settings.log_level,
            sink=Sink(lines_to, on_drop=lambda count, reason: dropped.labels(reason=reason).inc(count)),
            redactor=Redactor(one.reveal() for one in (*self.settings.secrets(), *secrets)),
        )
        self._metrics = MetricsService(
            self.registry, self.logging.event, created=self.settings.metrics_created
        )
        self.http_metrics: Final = HttpMetrics(self.registry, unit=duration_unit, buckets=duration_buckets)
        self.websocket_metrics: Final = WebsocketMetrics(self.registry)
        self._refreshes: list[Callable[[], Awaitable[None]]] = []
        self.database_service: DatabaseService | None = None
        self._audit: AuditWatch | None = None
        self._retention: RetentionService | None = None
        checks = list(checks)
        if database or retention or migrations:
            self.database_service = self._declare_database(migrations, retention, archive)
            checks.insert(0, DatabaseCheck(self.database_service.ping))
        self._checks = CheckRunner(checks, on_result=self._record_result if self.database_service else None)
        self.failure: BaseException | None = None
        self._opening: asyncio.Task[None] | None = None
        self._started_at = 0.0
        self._stopping = False
        self._wrapped = False

    @property
    def log(self) -> Any:
        """The service's structlog logger."""
        return self.logging.logger

    @property
    def database(self) -> Database:
        """The opened database; an error if the service has none, or the keeper is not running."""
        if self.database_service is None:
            raise ConfigurationError("This service has no database: pass database=True to Watchkeeper.")
        return self.database_service.database

    @property
    def retention(self) -> Retention:
        """The retention of this service; an error without policies, or if the keeper is not running."""
        if self._retention is None or self._retention.retention is None:
            raise ConfigurationError("There is no retention: declare policies, and start the keeper first.")
        return self._retention.retention

    def on_scrape(self, refresh: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Await `refresh` before each scrape, to set gauges from another source; register it before `wrap`.

        It runs for at most a second and is shared by overlapping scrapes. When it fails, the scrape continues
        without it, so clear its gauges first.
        """
        if self._wrapped:
            raise ConfigurationError("Declare refreshes before the app is wrapped: later ones are not used.")
        self._refreshes.append(refresh)
        return refresh

    def wrap(self, app: ASGIApp, *, resolve_route: Callable[[Scope], str] | None = None) -> ASGIApp:
        """Return `app` with logs, metrics and the library's endpoints around it.

        Args:
            app: Any ASGI app; its lifespan starts and stops the keeper.
            resolve_route: Returns the route template of a dispatched scope, for a framework that the library
                does not know; see docs/http.md.
        """
        self._wrapped = True
        # Before the start: a server logs its first lines before it starts the app.
        self.logging.install()
        endpoints = Endpoints(
            self.settings,
            logging=self.logging,
            exporter=self._metrics.exporter,
            checks=self._checks,
            ready=self._ready,
            details=self._details,
            before_scrape=self._refreshes,
        )
        config = RecorderConfig.from_settings(
            self.settings,
            logs=self.logging,
            metrics=self.http_metrics,
            websocket_metrics=self.websocket_metrics,
            resolve_route=resolve_route or resolver_for(app),
        )
        return Middleware(app, config, endpoints=endpoints, lifespan=Lifespan(app, self.start, self.close))

    async def start(self) -> None:
        """Open the database and start the background work, or raise `WatchkeeperError`."""
        self.logging.install()
        self.logging.sink.immediate = False
        self._started_at = time.monotonic()
        self._stopping = False
        await self._open_metrics()
        try:
            await self._checks.open()
            await self._open_unless_stopped()
            if self._retention is not None:
                self._retention.start()
        except BaseException as error:
            self.failure = error
            await self.close()
            raise

    async def stop(self) -> None:
        """Stop the background work, close everything, and restore logging as it was before."""
        await self.close()
        self.logging.uninstall()

    async def close(self) -> None:
        """Stop the background work and close everything; logging still works."""
        self._stopping = True
        await self._checks.close()
        await self._metrics.close()
        if self._retention is not None:
            await self._retention.close()
        if self.database_service is not None:
            await self.database_service.close()
        # The server still logs, and may exit before the event loop's turn ends, when lines are written.
        self.logging.sink.immediate = True
        self.logging.flush()
        if self.logging.sink.is_behind:
            # A server killed by a signal runs no exit handler that could wait for a slow reader.
            await asyncio.to_thread(self.logging.flush)

    def begin_shutdown(self) -> None:
        """Report not ready before the server stops accepting; a start in progress is cancelled."""
        self._stopping = True
        if self._opening is not None:
            self._opening.cancel()

    @contextlib.asynccontextmanager
    async def running(self, *, migrate: bool = True) -> AsyncIterator[None]:
        """Open the database and retention for the operator's commands, without the background work.

        `migrate=False` leaves the tables as they are, to restore a backup.
        """
        try:
            await self._open(migrate=migrate, take_over=False)
            yield
        finally:
            await self.stop()

    def _declare_database(
        self, migrations: Sequence[MigrationSource], policies: Sequence[Policy], archive: Archive | None
    ) -> DatabaseService:
        # Imported here because a service without a database needs neither psycopg nor cronsim.
        with require_extra("postgres"):
            from watchkeeper.audit._watch import AuditWatch  # noqa: PLC0415
            from watchkeeper.database._service import DatabaseService  # noqa: PLC0415

        database = DatabaseService(self.settings, migrations, self.logging.event)
        if policies:
            from watchkeeper.retention._service import RetentionService  # noqa: PLC0415

            self._retention = RetentionService(
                policies, self.settings, database, archive, registry=self.registry, logging=self.logging
            )
            self._refreshes.append(self._retention.refresh_metrics)
        self._audit = AuditWatch(database, self.registry, self.logging.event)
        self._db_up = self.registry.gauge(
            "db_up", "Whether the database answered its last check (1) or not (0)."
        )
        self._refreshes += [self._audit.refresh, self._refresh_db_up]
        return database

    async def _open(self, *, migrate: bool = True, take_over: bool = True) -> None:
        if self.database_service is not None:
            await self.database_service.open(migrate=migrate, take_over=take_over)
        if self._audit is not None:
            await self._audit.refresh()
        if self._retention is not None:
            self._retention.open()

    async def _open_unless_stopped(self) -> None:
        self._opening = asyncio.create_task(self._open(), name="watchkeeper-open")
        try:
            await self._opening
        except asyncio.CancelledError:
            if self._stopping:
                raise WatchkeeperError("The service was stopped while it was starting.") from None
            raise
        finally:
            self._opening.cancel()
            self._opening = None

    async def _open_metrics(self) -> None:
        settings = self.settings
        if not settings.metrics:
            return
        if settings.metrics_token is None and not is_loopback(settings.host):
            text = "/metrics is closed: the service is bound off loopback without METRICS_TOKEN. Set it."
            self.logging.event("warn", type="metrics", status="closed", msg=text)
        await self._metrics.open(settings.service, name=settings.metrics_instance, base=settings.metrics_dir)

    def _log_metric_error(self, error: MetricError) -> None:
        more = {} if error.__cause__ is None else {"error": describe_exception(error.__cause__)}
        self.logging.event("error", type="metrics", status="degraded", msg=str(error), **more)

    def _record_result(self, name: str, result: CheckResult) -> None:
        if name == DATABASE_CHECK:
            self._db_up.set(float(result.ok))

    async def _ready(self) -> dict[str, bool]:
        state = {"running": not self._stopping}
        if self.database_service is not None:
            results = await self._checks.run(DATABASE_CHECK)
            state["database"] = results[DATABASE_CHECK].ok
            state["migrations"] = self.database_service.migrated
        return state

    async def _refresh_db_up(self) -> None:
        await self._checks.run(DATABASE_CHECK)

    async def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = {
            "service": self.settings.service,
            "env": self.settings.env,
            "uptime": round(time.monotonic() - self._started_at, 3),
        }
        if self.database_service is not None:
            details["database"] = "external" if self.database_service.server is None else "embedded"
            details["migrated"] = self.database_service.migrated
            details["retention"] = self._retention is not None and self._retention.is_running
        return details

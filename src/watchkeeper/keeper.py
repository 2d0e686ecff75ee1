"""The keeper: joins logs, metrics, health, database and retention, and wraps them around an ASGI app."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from watchkeeper.exceptions import ConfigurationError, MetricError, WatchkeeperError
from watchkeeper.health import DATABASE_CHECK, CheckRunner
from watchkeeper.http import Endpoints, Lifespan, Middleware, is_loopback
from watchkeeper.logs import (
    DROP_REASONS,
    Logging,
    Redactor,
    Sink,
    carry_context_into_threads,
    describe_exception,
    stop_carrying_context_into_threads,
)
from watchkeeper.metrics import HttpMetrics, Instance, Registry, WebsocketMetrics, Workers
from watchkeeper.settings import Settings

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        MutableMapping,
        Sequence,
    )
    from typing import Literal

    from watchkeeper.database import Database, MigrationSource
    from watchkeeper.health import Check, CheckResult
    from watchkeeper.house import House
    from watchkeeper.retention import Archive, Policy, Retention
    from watchkeeper.settings import Secret
    from watchkeeper.storage import Storage

    Scope = MutableMapping[str, Any]
    ASGIApp = Callable[
        [Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
    ]


class Watchkeeper:
    """Keeps watch over one service and keeps house for it.

    Args:
        service: Name of the service, in every line and as the name of its state folder.
        settings: What the operator set; default: read from the environment.
        database: Whether the service has a PostgreSQL (`DATABASE_URL`, else the embedded one); default: only
            when there are policies or migrations.
        migrations: The service's own migrations, applied after the library's.
        checks: What `/health/detailed` asks besides the database.
        retention: What is kept how long; needs the database.
        archive: Where policies that archive write their rows first; default: the folder of the settings.
        duration_unit: Unit of the HTTP duration histogram and of its name: "s" or "ms".
        duration_buckets: Upper bounds of that histogram, in its unit; default: the library's.
        secrets: Values that may appear nowhere, besides those of the settings.
        lines_to: File descriptor of the log; default stdout.

    Raises:
        ConfigurationError: A setting is not usable.
        PolicyRefusedError: A policy may not be declared.
    """

    def __init__(  # noqa: PLR0913 - this is the one page of options
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
        self.settings = Settings.from_env(service) if settings is None else settings
        if database is False and (retention or migrations):
            raise ConfigurationError("Retention and migrations need a database: leave out database=False.")
        self.registry = Registry(
            on_error=self._tell_of_metrics,
            max_series=self.settings.metrics_max_series,
            created=self.settings.metrics_created,
        )
        self._workers = Workers(self.registry)
        # Instruments are declared on the registry; a service says keeper.counter(...).
        self.counter = self.registry.counter
        self.gauge = self.registry.gauge
        self.histogram = self.registry.histogram
        self._dropped = self.registry.counter(
            "log_records_dropped_total",
            "Log lines that could not be written, by reason.",
            ("reason",),
            known=[{"reason": reason} for reason in DROP_REASONS],
        )
        self.logging = Logging(
            service=self.settings.service,
            env=self.settings.env,
            level=self.settings.log_level,
            sink=Sink(lines_to, on_drop=self._count_dropped),
            redactor=Redactor(one.reveal() for one in (*self.settings.secrets(), *secrets)),
        )
        self._began = self.registry.gauge(
            "metrics_start_time_seconds",
            "When the counters of this instance began, as a unix time; its workers may be younger.",
            multiprocess_mode="min",
        )
        self.http_metrics = HttpMetrics(self.registry, unit=duration_unit, buckets=duration_buckets)
        self.websocket_metrics = WebsocketMetrics(self.registry)
        self._house: House | None = None
        if database or retention or migrations:
            from watchkeeper.house import House  # noqa: PLC0415 - only those load it who have a database

            self._house = House(
                self.settings,
                migrations=migrations,
                policies=retention,
                archive=archive,
                registry=self.registry,
                logging=self.logging,
            )
            self._db_up = self.registry.gauge(
                "db_up", "Whether the database answered its last check (1) or not (0)."
            )
        own = [] if self._house is None else [self._house.storage.check]
        self._checks = CheckRunner([*own, *checks], on_result=self._note_result)
        self._refreshes: list[Callable[[], Awaitable[None]]] = []
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
        """The opened database.

        Raises:
            ConfigurationError: The service was declared without one.
            DatabaseUnavailableError: The keeper is not running.
        """
        return self._owned_house().storage.database

    @property
    def retention(self) -> Retention:
        """The retention of this service.

        Raises:
            ConfigurationError: No policy is declared, or the keeper is not running.
        """
        return self._owned_house().retention

    @property
    def storage(self) -> Storage | None:
        """Where the data lives, for the operator's commands."""
        return None if self._house is None else self._house.storage

    def on_scrape(self, refresh: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Have `refresh` awaited before each scrape, to set gauges that something else knows.

        Args:
            refresh: Bounded to a second and shared by scrapes that overlap; when it fails, the scrape goes on
                without it, so it clears its gauges first.

        Raises:
            ConfigurationError: The app is wrapped already.
        """
        if self._wrapped:
            raise ConfigurationError(
                "Declare refreshes before the app is wrapped: its /metrics knows no later one."
            )
        self._refreshes.append(refresh)
        return refresh

    def wrap(self, app: ASGIApp, *, resolve_route: Callable[[Scope], str] | None = None) -> ASGIApp:
        """Return `app`, watched.

        Args:
            app: Any ASGI app; its lifespan starts and stops the keeper.
            resolve_route: Returns the route template of a dispatched scope, for a framework that the library
                does not know; see docs/http.md.
        """
        self._wrapped = True
        # Now, not at the start: a server says its first words before it starts the app.
        self.logging.install()
        endpoints = Endpoints(
            settings=self.settings,
            workers=self._workers,
            runner=self._checks,
            ready=self._ready,
            before_scrape=self._all_refreshes(),
            details=self._details,
            bound_to_loopback=is_loopback(self.settings.host),
            logging=self.logging,
        )
        counted = self.settings.metrics
        return Middleware(
            app,
            logging=self.logging,
            metrics=self.http_metrics if counted else None,
            endpoints=endpoints,
            websockets=self.websocket_metrics if counted else None,
            lifespan=Lifespan(app, self.start, self.close),
            request_lines=self.settings.request_lines,
            request_sample=self.settings.request_sample,
            probe_lines=self.settings.probe_lines,
            resolve_route=resolve_route,
        )

    async def start(self) -> None:
        """Open everything that the service needs, then keep house in the background.

        Raises:
            WatchkeeperError: The service may not or cannot run, or is told to stop; the message says why.
        """
        self.logging.install()
        self.logging.sink.at_once = False
        carry_context_into_threads()
        self._started_at = time.monotonic()
        self._stopping = False
        self._warn_of_closed_metrics()
        await self._share_metrics()
        try:
            await self._checks.open()
            if self._house is not None:
                await self._open(self._house)
        except BaseException as error:
            self.failure = error
            await self.close()
            raise

    async def stop(self) -> None:
        """End the background work, close everything, and put logging back as it was before."""
        await self.close()
        self.logging.uninstall()

    async def close(self) -> None:
        """End the background work and close everything; lines still come out as before."""
        self._stopping = True
        await self._checks.close()
        await self._workers.close()
        if self._house is not None:
            await self._house.close()
        stop_carrying_context_into_threads()
        # The server has some last words, and may end before the loop's turn does, in which lines are written.
        self.logging.sink.at_once = True
        self.logging.flush()
        if self.logging.sink.is_behind:
            # A server that ends by a signal runs no exit handler, in which the reader could be waited for.
            await asyncio.to_thread(self.logging.flush)

    def begin_shutdown(self) -> None:
        """Say not ready from now on, before the server stops accepting; a start that goes on is given up."""
        self._stopping = True
        if self._opening is not None:
            self._opening.cancel()

    @contextlib.asynccontextmanager
    async def running(self, *, migrate: bool = True) -> AsyncIterator[None]:
        """Open what the operator's commands need (database, retention) without the background work.

        Args:
            migrate: False leaves the tables as they are, for commands that bring a backup back.
        """
        try:
            if self._house is not None:
                await self._house.open(migrate=migrate, take_over=False)
            yield
        finally:
            await self.stop()

    async def _open(self, house: House) -> None:
        self._opening = asyncio.create_task(house.open(), name="watchkeeper-open")
        try:
            await self._opening
        except asyncio.CancelledError:
            if self._stopping:
                raise WatchkeeperError("The service was told to stop while it was starting.") from None
            raise
        finally:
            self._opening.cancel()
            self._opening = None
        house.keep()

    def _owned_house(self) -> House:
        if self._house is None:
            raise ConfigurationError("This service has no database: pass database=True to Watchkeeper.")
        return self._house

    def _warn_of_closed_metrics(self) -> None:
        settings = self.settings
        if settings.metrics and settings.metrics_token is None and not is_loopback(settings.host):
            text = "/metrics is closed: the service is bound off loopback without METRICS_TOKEN. Set it."
            self.logging.event("warn", type="metrics", status="closed", msg=text)

    async def _share_metrics(self) -> None:
        """Join the other workers of this instance; without them this one's figures are still its own."""
        if not self.settings.metrics:
            return
        try:
            if self.registry.folder is not None:  # a keeper that was closed and starts again
                await self._workers.open()
                return
            instance = Instance(
                self.settings.service, name=self.settings.metrics_instance, base=self.settings.metrics_dir
            )
            self.registry.share(instance.folder, temporary=instance.ends_with_this_process)
            await self._workers.open()
        except (MetricError, OSError) as error:
            text = f"This worker's metrics are not added to those of others: {error}"
            self.logging.event("warn", type="metrics", status="alone", msg=text)
            self._began.set(time.time())
        else:
            self._began.set(instance.began)

    def _tell_of_metrics(self, error: MetricError) -> None:
        more = {} if error.__cause__ is None else {"error": describe_exception(error.__cause__)}
        self.logging.event("error", type="metrics", status="degraded", msg=str(error), **more)

    def _note_result(self, name: str, result: CheckResult) -> None:
        if name == DATABASE_CHECK:
            self._db_up.set(float(result.ok))

    def _count_dropped(self, count: int, reason: str) -> None:
        self._dropped.labels(reason=reason).inc(count)

    async def _ready(self) -> dict[str, bool]:
        state = {"running": not self._stopping}
        if self._house is not None:
            results = await self._checks.run(DATABASE_CHECK)
            state["database"] = results[DATABASE_CHECK].ok
            state["migrations"] = self._house.storage.migrated
        return state

    def _all_refreshes(self) -> list[Callable[[], Awaitable[None]]]:
        if self._house is None:
            return self._refreshes
        return [*self._refreshes, self._refresh_db_up, *self._house.refreshes]

    async def _refresh_db_up(self) -> None:
        await self._checks.run(DATABASE_CHECK)

    async def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = {
            "service": self.settings.service,
            "env": self.settings.env,
            "uptime": round(time.monotonic() - self._started_at, 3),
        }
        if self._house is not None:
            storage = self._house.storage
            details["database"] = "external" if storage.server is None else "embedded"
            details["migrated"] = storage.migrated
            details["retention"] = self._house.is_kept
        return details

"""Declares what of this service is monitored, and how long its data is kept.

Watchkeeper adds the endpoints, request lines, HTTP metrics, and retention lines and metrics. The dashboards
and alert rules in infra/monitoring depend on these names.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from realestate.settings import SERVICE, BackendSettings, service_settings
from watchkeeper import Watchkeeper
from watchkeeper.database import MigrationSource, Queries
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.health import HttpCheck
from watchkeeper.retention import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from watchkeeper.database import Database
    from watchkeeper.metrics import Counter, Gauge, Histogram

CHANNELS: Final = ("webchat", "telegram", "whatsapp")
TOOLS: Final = (
    "listing.validate",
    "listing.dedupe",
    "listing.search",
    "admin.review-queue",
    "admin.decision",
)
TOOL_STATUSES: Final = ("ok", "rejected", "error")

# Deleted by age, daily at 3 AM in RETENTION_TIMEZONE. The audit log is never pruned (compliance).
POLICIES: Final = (
    Policy(table="inbound_events", age_column="received_at", keep=timedelta(days=30)),
    Policy(table="chat_sessions", age_column="updated_at", keep=timedelta(days=90)),
)

# A session counts as active this long after its last touch.
ACTIVE_WINDOW: Final = timedelta(minutes=30)

# Bounds above the alerts' threshold of 5 s: histogram_quantile never returns more than the top finite one.
REQUEST_BUCKETS_MS: Final = (10, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000)
TOOL_BUCKETS_MS: Final = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000)

GATEWAY_TIMEOUT: Final = timedelta(seconds=1)

MIGRATIONS: Final = MigrationSource(name="realestate", folder=files("realestate") / "sql" / "migrations")


def load_queries(name: str) -> Queries:
    """Return the named queries of one of this package's .sql files."""
    return Queries.load("realestate", name)


_SESSIONS: Final = load_queries("sessions")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """The service's own instruments; every known label set is exposed at 0 from the start."""

    webhook_failures: Counter
    tool_calls: Counter
    tool_duration: Histogram
    pairing_failures: Counter
    active_sessions: Gauge


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """The service: its settings, its keeper and its instruments."""

    settings: BackendSettings
    keeper: Watchkeeper
    metrics: Metrics

    @property
    def database(self) -> Database:
        """The service's database.

        Raises:
            DatabaseUnavailableError: It is not open.
        """
        return self.keeper.database


def build(environ: Mapping[str, str]) -> Backend:
    """Return the service that the environment describes, not yet running.

    Raises:
        ConfigurationError: A setting is not usable.
    """
    settings = BackendSettings.from_env(environ)
    keeper = Watchkeeper(
        SERVICE,
        settings=service_settings(environ),
        migrations=[MIGRATIONS],
        checks=[HttpCheck("moltbot", f"{settings.gateway_url.rstrip('/')}/health", timeout=GATEWAY_TIMEOUT)],
        retention=POLICIES,
        duration_unit="ms",
        duration_buckets=REQUEST_BUCKETS_MS,
        secrets=settings.secrets(),
    )
    metrics = _declare(keeper, settings.webhook_secrets)
    backend = Backend(settings=settings, keeper=keeper, metrics=metrics)
    keeper.on_scrape(_ActiveSessions(backend).refresh)
    return backend


def keeper() -> Watchkeeper:
    """Return the service's keeper for `watchkeeper --app realestate.monitoring:keeper`."""
    return build(os.environ).keeper


def _declare(keeper: Watchkeeper, sources: Iterable[str]) -> Metrics:
    return Metrics(
        webhook_failures=keeper.counter(
            "webhook_failures_total",
            "Deliveries of a configured source that were not accepted.",
            ("source",),
            known=[{"source": source} for source in sources],
        ),
        tool_calls=keeper.counter(
            "tool_calls_total",
            "Calls of agents' tools, by outcome: ok, rejected or error.",
            ("tool", "status"),
            known=[{"tool": tool, "status": status} for tool in TOOLS for status in TOOL_STATUSES],
        ),
        tool_duration=keeper.histogram(
            "tool_call_duration_ms",
            "Duration of tool calls in milliseconds.",
            ("tool",),
            buckets=TOOL_BUCKETS_MS,
            known=[{"tool": tool} for tool in TOOLS],
        ),
        pairing_failures=keeper.counter(
            "pairing_failures_total",
            "Pairing attempts with a wrong or expired code, or while locked out.",
            ("channel",),
            known=[{"channel": channel} for channel in CHANNELS],
        ),
        active_sessions=keeper.gauge(
            "active_sessions", "Chat sessions touched within the last 30 minutes, as the database says."
        ),
    )


class _ActiveSessions:
    """Sets the gauge from the database, so that it is right with any number of workers."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def refresh(self) -> None:
        """Set the gauge; without a database, remove it rather than show an old value."""
        gauge = self._backend.metrics.active_sessions
        gauge.clear()
        with contextlib.suppress(DatabaseUnavailableError):
            gauge.set(await self._count())

    async def _count(self) -> int:
        async with self._backend.database.connection() as conn:
            cursor = await conn.execute(_SESSIONS["count_active"], {"window": ACTIVE_WINDOW})
            row: Any = await cursor.fetchone()
            return int(row[0])

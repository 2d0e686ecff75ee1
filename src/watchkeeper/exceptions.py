"""Errors that Watchkeeper raises: one base, and one class for each thing a caller may want to handle."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class WatchkeeperError(Exception):
    """Base of all errors of this library; its message says what is wrong and how to fix it."""


class ConfigurationError(WatchkeeperError, ValueError):
    """A setting or an argument is not usable; the message names it, the constraint and the fix."""


class MetricError(WatchkeeperError, ValueError):
    """A metric is declared or used in a way that Prometheus would refuse."""


class DatabaseUnavailableError(WatchkeeperError):
    """The database cannot be reached now; the same call may work later."""


class MigrationError(WatchkeeperError):
    """A migration failed, was changed after it ran, or the database is newer than the code."""


class EmbeddedServerError(WatchkeeperError):
    """The embedded PostgreSQL cannot start or has stopped; the message says why and how to fix it."""


class AuditError(WatchkeeperError):
    """An audit entry cannot be written."""


class RetentionError(WatchkeeperError):
    """A retention run cannot continue; the ledger counts what it deleted so far."""


class ArchiveError(RetentionError):
    """Rows cannot be written to the archive or read from it; the message says where and how to fix it."""


class PolicyRefusedError(RetentionError, ValueError):
    """A retention policy may not be declared or run."""


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Turn the ImportError of a missing package into a `ConfigurationError` that names its extra."""
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"{error.name} is not installed, which this service needs: pip install 'watchkeeper[{extra}]'"
        ) from error

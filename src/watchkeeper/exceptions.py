"""Errors that Watchkeeper raises: one base, and one class for each thing a caller may want to handle."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class WatchkeeperError(Exception):
    """Base of all errors of this library; its message says what is wrong and how to mend it."""


class ConfigurationError(WatchkeeperError, ValueError):
    """A setting or an argument is not usable; the message names it, the constraint and the fix."""


class MetricError(WatchkeeperError, ValueError):
    """A metric is declared or used in a way that Prometheus would refuse."""


class DatabaseUnavailableError(WatchkeeperError):
    """The database cannot be reached now; the same call may work later."""


class MigrationError(WatchkeeperError):
    """A migration failed, was changed after it ran, or the database is newer than the code."""


class EmbeddedServerError(WatchkeeperError):
    """The embedded PostgreSQL cannot start or went away; the message says why and what mends it."""


class AuditError(WatchkeeperError):
    """An audit entry cannot be written as asked."""


class RetentionError(WatchkeeperError):
    """A retention run cannot go on; what it deleted so far is in the ledger."""


class ArchiveError(RetentionError):
    """Rows cannot be written to the archive or read from it; the message says where, and what mends it."""


class PolicyRefusedError(RetentionError, ValueError):
    """A retention policy may not be declared or carried out."""


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Turn a missing package of an extra into a sentence.

    Args:
        extra: The extra that brings what is imported inside.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"{error.name} is not installed, which this service needs: pip install 'watchkeeper[{extra}]'"
        ) from error

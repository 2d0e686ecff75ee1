"""What a check is, and what is known after it ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from watchkeeper.exceptions import WatchkeeperError

if TYPE_CHECKING:
    from datetime import timedelta


class UnhealthyError(WatchkeeperError):
    """A dependency answers, and says or shows that it is not well."""


class Check(Protocol):
    """One dependency's health.

    A check may carry its own `timeout` and `ttl`, which then win over the runner's, and `aopen()` and
    `aclose()`, which are awaited when the service starts and stops.
    """

    @property
    def name(self) -> str:
        """The key in the answer of `/health/detailed`."""

    async def __call__(self) -> None:
        """Return when the dependency is healthy; raise anything when it is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """What a check found.

    Args:
        ok: Whether the dependency is healthy.
        checked_at: When that was found out, in seconds since the epoch.
        latency: How long it took.
        error: Why it is not; for those with a token only.
    """

    ok: bool
    checked_at: float
    latency: timedelta
    error: str | None

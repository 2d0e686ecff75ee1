"""The interface of a health check, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from watchkeeper.exceptions import WatchkeeperError

if TYPE_CHECKING:
    from datetime import timedelta


class UnhealthyError(WatchkeeperError):
    """A dependency responds, but reports or shows that it is unhealthy."""


class Check(Protocol):
    """Checks the health of one dependency.

    A check may have its own `timeout` and `ttl` (each a `timedelta`; default 1 s), and `aopen()` and
    `aclose()`, which are awaited when the service starts and stops.
    """

    @property
    def name(self) -> str:
        """The key in the response of `/health/detailed`."""

    async def __call__(self) -> None:
        """Return if the dependency is healthy; raise any exception if it is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """The result of a check; `checked_at` is a unix time, `error` is shown only with the token."""

    ok: bool
    checked_at: float
    latency: timedelta
    error: str | None

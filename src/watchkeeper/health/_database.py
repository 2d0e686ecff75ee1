"""The check of the service's own database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DATABASE_CHECK: Final = "db"  # name of the check


class DatabaseCheck:
    """Pings the database; `ping` raises if it does not respond."""

    name: Final = DATABASE_CHECK
    timeout: Final = timedelta(seconds=1)
    # Timeout and ttl together stay well within the two seconds in which an outage must show.
    ttl: Final = timedelta(milliseconds=500)

    def __init__(self, ping: Callable[[], Awaitable[None]]) -> None:
        self._ping = ping

    async def __call__(self) -> None:
        """Raise if the database does not respond."""
        await self._ping()

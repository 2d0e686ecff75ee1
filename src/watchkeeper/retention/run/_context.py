"""What the parts of one run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from watchkeeper.database import Database
    from watchkeeper.retention._model import Claim, RunObserver
    from watchkeeper.retention._policy import Policy
    from watchkeeper.retention.archive._archive import Archive
    from watchkeeper.retention.ledger._ledger import Ledger
    from watchkeeper.retention.run._pressure import PressureWatch
    from watchkeeper.retention.run._tuning import Tuning
    from watchkeeper.settings import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One claimed run: what it deletes, its limits, and what it uses."""

    database: Database
    ledger: Ledger
    policy: Policy
    claim: Claim
    limits: Limits
    stop: asyncio.Event  # set when the process is stopping
    observer: RunObserver
    pressure: PressureWatch
    tuning: Tuning
    archive: Archive | None = None

    @property
    def shares_time(self) -> bool:
        """Whether the run is throttled: it leaves a share of the time to other clients."""
        return self.limits.budget < 1.0

"""Audited data retention: how long rows are kept, and the runs that delete older ones."""

from __future__ import annotations

from watchkeeper.retention._holds import Condition, Hold
from watchkeeper.retention._model import RunObserver, RunResult
from watchkeeper.retention._policy import Policy
from watchkeeper.retention._retention import Retention
from watchkeeper.retention.archive._archive import Archive, Location
from watchkeeper.retention.archive._folder import FolderArchive
from watchkeeper.retention.ledger._status import PastRun, PolicyStatus
from watchkeeper.retention.plan._plan import Plan
from watchkeeper.settings import Limits, Thresholds

__all__ = [
    "Archive",
    "Condition",
    "FolderArchive",
    "Hold",
    "Limits",
    "Location",
    "PastRun",
    "Plan",
    "Policy",
    "PolicyStatus",
    "Retention",
    "RunObserver",
    "RunResult",
    "Thresholds",
]

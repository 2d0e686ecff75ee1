"""Audited data retention: what is kept how long, and the runs that delete the rest."""

from __future__ import annotations

from watchkeeper.retention._archive import Archive, FolderArchive, Location
from watchkeeper.retention._attempts import RETRY_WAITS
from watchkeeper.retention._backlog import Backlog, BacklogWatch, read_backlog
from watchkeeper.retention._holds import Condition, Hold
from watchkeeper.retention._ledger import (
    ACTION,
    ACTOR,
    LEASE,
    Claim,
    Ledger,
)
from watchkeeper.retention._metrics import WAITING_REASONS, RetentionMetrics
from watchkeeper.retention._orders import (
    RunCancelledError,
    RunInterruptedError,
    RunLostError,
    RunPausedError,
    RunTimeoutError,
)
from watchkeeper.retention._plan import Plan, plan
from watchkeeper.retention._policy import Policy, check_policies
from watchkeeper.retention._pressure import REASONS, Thresholds
from watchkeeper.retention._restore import ArchivedRun, Restored
from watchkeeper.retention._retention import Calendar, Retention
from watchkeeper.retention._run import RunResult, run
from watchkeeper.retention._share import Limits
from watchkeeper.retention._status import PastRun, PolicyStatus
from watchkeeper.retention._vacuum import Vacuum

__all__ = [
    "ACTION",
    "ACTOR",
    "LEASE",
    "REASONS",
    "RETRY_WAITS",
    "WAITING_REASONS",
    "Archive",
    "ArchivedRun",
    "Backlog",
    "BacklogWatch",
    "Calendar",
    "Claim",
    "Condition",
    "FolderArchive",
    "Hold",
    "Ledger",
    "Limits",
    "Location",
    "PastRun",
    "Plan",
    "Policy",
    "PolicyStatus",
    "Restored",
    "Retention",
    "RetentionMetrics",
    "RunCancelledError",
    "RunInterruptedError",
    "RunLostError",
    "RunPausedError",
    "RunResult",
    "RunTimeoutError",
    "Thresholds",
    "Vacuum",
    "check_policies",
    "plan",
    "read_backlog",
    "run",
]

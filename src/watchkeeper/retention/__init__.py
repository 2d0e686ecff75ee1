"""Audited data retention: what is kept how long, and the runs that delete the rest."""

from __future__ import annotations

from watchkeeper.retention._holds import Condition, Hold
from watchkeeper.retention._metrics import WAITING_REASONS, RetentionMetrics
from watchkeeper.retention._policy import Policy, check_policies
from watchkeeper.retention._retention import Calendar, Retention
from watchkeeper.retention._schedule import Schedule
from watchkeeper.retention._scheduler import GRACE, POLL, Scheduler
from watchkeeper.retention.archive._archive import Archive, FolderArchive, Location
from watchkeeper.retention.archive._restore import ArchivedRun, Restored
from watchkeeper.retention.ledger._attempts import RETRY_WAITS
from watchkeeper.retention.ledger._interrupts import (
    RunCancelledError,
    RunInterruptedError,
    RunLostError,
    RunPausedError,
    RunTimeoutError,
)
from watchkeeper.retention.ledger._ledger import (
    ACTION,
    ACTOR,
    LEASE,
    Claim,
    Ledger,
)
from watchkeeper.retention.ledger._status import PastRun, PolicyStatus
from watchkeeper.retention.plan._backlog import Backlog, BacklogWatch, read_backlog
from watchkeeper.retention.plan._plan import Plan
from watchkeeper.retention.run._pressure import REASONS
from watchkeeper.retention.run._run import RunResult
from watchkeeper.retention.table._vacuum import Vacuum
from watchkeeper.settings import Limits, Thresholds

__all__ = [
    "ACTION",
    "ACTOR",
    "GRACE",
    "LEASE",
    "POLL",
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
    "Schedule",
    "Scheduler",
    "Thresholds",
    "Vacuum",
    "check_policies",
    "read_backlog",
]

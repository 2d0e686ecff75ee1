"""When the house is kept: what is due, in which time zone, and the loop that looks after it."""

from __future__ import annotations

from watchkeeper.schedule._schedule import Schedule
from watchkeeper.schedule._scheduler import GRACE, POLL, Scheduler

__all__ = ["GRACE", "POLL", "Schedule", "Scheduler"]

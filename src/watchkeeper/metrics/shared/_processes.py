"""Identifies a process by its pid and start time, since pids are reused."""

from __future__ import annotations

import os
from pathlib import Path


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if it has ended or /proc does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # Field 22 (proc(5)); the name before it may have spaces and parentheses. State Z or X has ended.
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return 0 if state in {b"Z", b"X"} else int(fields[18])


def is_running(pid: int, started: int) -> bool:
    """Return whether this process is running; with a start time of 0 (unknown) the pid alone decides."""
    if pid <= 0:
        return False
    if started:
        return start_time(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Identifies a process by its pid and start time, since a pid alone is used again."""

from __future__ import annotations

import os
from pathlib import Path


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if it has ended or /proc does not say.

    It is field 22 of /proc/PID/stat (proc(5)); the name before it may contain spaces and parentheses. A
    zombie (state Z or X) has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return 0 if state in {b"Z", b"X"} else int(fields[18])


def is_running(pid: int, started: int) -> bool:
    """Return whether the process with this pid and this `start_time` is running.

    A pid of 0 is no process. With a start time of 0 (unknown) the pid alone decides.
    """
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

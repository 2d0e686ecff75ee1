"""Which process is which: a pid alone is used again, with its start time it is not."""

from __future__ import annotations

import os
from pathlib import Path


def start_of(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 where it is gone or the system tells not.

    Field 22 of /proc/PID/stat (proc(5)); the name before it may hold spaces and brackets. One that ended and
    was not waited for (a zombie, state Z or X) is gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return 0 if state in {b"Z", b"X"} else int(fields[18])


def is_running(pid: int, start: int) -> bool:
    """Say whether this very process runs, not another one that got its number.

    Args:
        pid: Its number; 0 is nobody.
        start: What `start_of` said of it; 0 where the system does not tell, then the number decides.
    """
    if pid <= 0:
        return False
    if start:
        return start_of(pid) == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""What an earlier supervisor left behind; the caller holds the lock of the folder, so it may be stopped."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import signal

_STATUS_LINE: Final = 7  # of postmaster.pid, counted from 0: src/include/utils/pidfile.h
_PROC: Final = Path("/proc")


def read_pid_file(data: Path) -> list[str]:
    """Return the lines of postmaster.pid, none if it does not exist."""
    try:
        return (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def is_ready(data: Path, pid: int) -> bool:
    """Return whether the server `pid` accepts connections; pg_ctl reads the same line."""
    lines = read_pid_file(data)
    return len(lines) > _STATUS_LINE and lines[0] == str(pid) and lines[_STATUS_LINE].strip() == "ready"


def recorded_pid(data: Path) -> int | None:
    """Return the process id in postmaster.pid, of a server that runs or was killed."""
    lines = read_pid_file(data)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def is_server(pid: int, data: Path) -> bool:
    """Return whether `pid` is a server over `data` by its command line, not a program that got its id."""
    try:
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(data) in arguments


def orphaned_backends(data: Path) -> list[int]:
    """Return the backends that work in `data`, as far as this process can see them."""
    found = []
    for entry in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
            if name == "postgres" and (entry / "cwd").readlink() == data:
                found.append(int(entry.name))
    return found


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended, or whose id another user's process may have."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)

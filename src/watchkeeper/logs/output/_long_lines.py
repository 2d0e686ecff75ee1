"""Lines longer than PIPE_BUF in a pipe that several processes write to.

The kernel interleaves such a write with others only when it must wait for room (pipe_write in fs/pipe.c
holds the pipe's mutex). So a long line is written only when all of it fits, under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import termios
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDEST_PIPE: Final = 1024 * 1024  # the limit of an unprivileged user (/proc/sys/fs/pipe-max-size)
_LOCK_TIMEOUT_S: Final = 0.25  # the lock is held only briefly: a process that keeps it longer was stopped
_RETRY_S: Final = 0.005


class LongLineLock:
    """Tells when a long line may be written to a descriptor; anything but a pipe always has room."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._refused_since: float | None = None

    @contextlib.contextmanager
    def room_for(self, size: int) -> Iterator[bool]:
        """Yield whether `size` bytes can be written in one piece; blocks other long lines until then."""
        if not _is_pipe(self._fd):
            yield True
            return
        locked = self._lock()
        try:
            yield (locked or self._has_timed_out()) and _has_room(self._fd, size)
        finally:
            if locked:
                with contextlib.suppress(OSError):
                    fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def wait(self) -> None:
        """Sleep before a retry: no system call waits for that much room, or for the lock with a time-out."""
        time.sleep(_RETRY_S)

    def _lock(self) -> bool:
        # A POSIX lock belongs to the process, so it also works between workers that inherited one descriptor.
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refused_since = self._refused_since or time.monotonic()
            return False
        except OSError:
            self._refused_since = 0.0  # locks are not supported here: do not wait for one
            return False
        self._refused_since = None
        return True

    def _has_timed_out(self) -> bool:
        since = self._refused_since
        return since is not None and time.monotonic() - since >= _LOCK_TIMEOUT_S


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False  # the write will raise it


def _has_room(fd: int, size: int) -> bool:
    capacity = _capacity(fd)
    if not capacity:
        return True
    # A line that does not fit into the rest of a page starts a new one: up to half of the pipe may be unused.
    used = 2 * _unread(fd)
    if used and used + size > capacity and capacity < _WIDEST_PIPE:
        capacity = _widen(fd) or capacity
    return used == 0 or used + size <= capacity


def _unread(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


def _capacity(fd: int) -> int:
    # Only Linux knows it, and can widen a pipe; elsewhere a long line is written without waiting.
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) if hasattr(fcntl, "F_GETPIPE_SZ") else 0


def _widen(fd: int) -> int:
    # Refused if the user's pipes already hold too much: then the line waits for the reader.
    with contextlib.suppress(OSError):
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _WIDEST_PIPE)
    return 0

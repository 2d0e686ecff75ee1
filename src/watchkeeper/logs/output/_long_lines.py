"""Lines longer than PIPE_BUF in a pipe that several processes write to.

The kernel mixes such a write with others only where it has to wait for room (pipe_write in fs/pipe.c holds
the pipe's mutex while it copies). So a long line goes out only when there is room for all of it, and long
lines of different processes exclude each other. Short lines, nearly all, pay nothing for it.
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

_WIDE: Final = 1024 * 1024  # what an ordinary user may ask for (/proc/sys/fs/pipe-max-size)
# The lock is held for a moment only: who has it for longer was stopped in the middle.
_LOCK_PATIENCE: Final = 0.25
_STEP: Final = 0.005


class LongLines:
    """Says when a long line may be written to a descriptor.

    Args:
        fd: Where the lines go; anything but a pipe has room.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._locked_out_since: float | None = None

    @contextlib.contextmanager
    def room_for(self, size: int) -> Iterator[bool]:
        """Say whether `size` bytes can be written in one piece now, and keep others' long lines out."""
        if not _is_pipe(self._fd):
            yield True
            return
        locked = self._lock()
        try:
            yield (locked or self._is_tired()) and _has_room(self._fd, size)
        finally:
            if locked:
                with contextlib.suppress(OSError):
                    fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def wait(self) -> None:
        """Wait a moment: no system call waits for that much room, nor for the lock with a limit."""
        time.sleep(_STEP)

    def _lock(self) -> bool:
        # A POSIX lock belongs to the process: workers that inherited one descriptor exclude each other too.
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._locked_out_since = self._locked_out_since or time.monotonic()
            return False
        except OSError:
            self._locked_out_since = 0.0  # no locks here: nothing to wait for
            return False
        self._locked_out_since = None
        return True

    def _is_tired(self) -> bool:
        since = self._locked_out_since
        return since is not None and time.monotonic() - since >= _LOCK_PATIENCE


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False  # the write itself will say what is wrong


def _has_room(fd: int, size: int) -> bool:
    capacity = _capacity(fd)
    if not capacity:
        return True
    # Lines that do not fit a page's rest begin a new page: up to half of the pipe's room is lost to that.
    used = 2 * _unread(fd)
    if used and used + size > capacity and capacity < _WIDE:
        capacity = _widen(fd) or capacity
    return used == 0 or used + size <= capacity


def _unread(fd: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


def _capacity(fd: int) -> int:
    # Only Linux says, and lets us widen; elsewhere a long line is written without waiting.
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) if hasattr(fcntl, "F_GETPIPE_SZ") else 0


def _widen(fd: int) -> int:
    # Refused when the user's pipes hold too much already: then the line waits for the reader.
    with contextlib.suppress(OSError):
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _WIDE)
    return 0

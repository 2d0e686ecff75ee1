"""Lines longer than PIPE_BUF in a pipe that several processes write to.

The kernel mixes such a write with others only where it has to wait for room (pipe_write in fs/pipe.c holds
the pipe's mutex while it copies). So a long line waits until there is room for all of it, and long lines of
different processes wait for each other. Short lines, nearly all, pay nothing for it.
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

_STEP: Final = 0.001
_WIDE: Final = 1024 * 1024  # what an ordinary user may ask for (/proc/sys/fs/pipe-max-size)


@contextlib.contextmanager
def room_for(fd: int, size: int, patience: float) -> Iterator[bool]:
    """Say whether `size` bytes can be written to `fd` in one piece, and keep other long lines out meanwhile.

    Args:
        fd: Where the line goes; anything but a pipe has room.
        size: Length of the line in bytes.
        patience: How long to wait for another process or the reader, in seconds.
    """
    if not _is_pipe(fd):
        yield True
        return
    deadline = time.monotonic() + patience
    locked = _lock(fd, deadline)
    try:
        yield _wait_for_room(fd, size, deadline)
    finally:
        if locked:
            with contextlib.suppress(OSError):
                fcntl.lockf(fd, fcntl.LOCK_UN)


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False  # the write itself will say what is wrong


def _lock(fd: int, deadline: float) -> bool:
    # A POSIX lock belongs to the process: workers that inherited the same descriptor exclude each other too.
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_STEP)
        except OSError:
            return False
        else:
            return True


def _wait_for_room(fd: int, size: int, deadline: float) -> bool:
    capacity = _capacity(fd)
    while capacity:
        # Lines that do not fit a page's rest begin a new page: up to half of the pipe's room is lost to that.
        used = 2 * _unread(fd)
        if used == 0 or used + size <= capacity:
            return True
        if time.monotonic() >= deadline:
            return False
        wider = _widen(fd) if capacity < _WIDE else 0
        if wider > capacity:
            capacity = wider
        else:
            time.sleep(_STEP)
    return True


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

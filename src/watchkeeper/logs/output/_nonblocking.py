"""Writes to a shared descriptor that never block, and that leave its flags alone.

O_NONBLOCK belongs to the open file: set on an inherited descriptor, it affects every process that writes to
it. Instead, the first of these that works is used:

1. a regular file, or a device that is no terminal: a plain write, which waits for no reader;
2. a pipe or socket on Linux 6.4 or later: RWF_NOWAIT with each write (pwritev2(2));
3. a socket: MSG_DONTWAIT with each send;
4. a pipe or terminal: our own non-blocking descriptor, opened through /proc/self/fd/N. It keeps pointing
   at what N was then, until a write fails;
5. otherwise (another user's pipe on an older kernel, a system other than Linux): `write` refuses, and
   `write_in_thread` does the work in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import weakref
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

# What kernels, sandboxes and kinds of files without RWF_NOWAIT answer.
_NOWAIT_UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ESPIPE}


class NonBlockingWriter:
    """Writes to one descriptor without blocking."""

    write: Callable[[bytes], int]
    """Writes all or a part and returns how many bytes; raises BlockingIOError where it would have to wait."""
    write_in_thread: Callable[[bytes], int]
    """As `write`, for a thread: it may block for a moment, so it works everywhere."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._release: weakref.finalize[Any, Any] | None = None
        self.reset()

    def reset(self) -> None:
        """Look again, at the next write, at what the descriptor is."""
        if self._release is not None:
            self._release()
            self._release = None
        self.write = self._first_write
        self.write_in_thread = self._first_write_in_thread

    def wait(self, timeout: timedelta) -> None:
        """Wait until there is room or the reader is gone (poll(2), POLLOUT)."""
        self._has_room(timeout.total_seconds())

    def _has_room(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def _first_write(self, data: bytes) -> int:
        self._choose(nowait=hasattr(os, "RWF_NOWAIT"))
        return self.write(data)

    def _first_write_in_thread(self, data: bytes) -> int:
        self._choose(nowait=hasattr(os, "RWF_NOWAIT"))
        return self.write_in_thread(data)

    def _choose(self, *, nowait: bool) -> None:
        if not _may_block(self.fd):
            write: Callable[[bytes], int] | None = self._write_plainly
        else:
            write = self._write_nowait if nowait else self._open_own()
        self.write = self._refuse if write is None else write
        self.write_in_thread = self._write_if_room if write is None else write

    def _write_plainly(self, data: bytes) -> int:
        return os.write(self.fd, data)

    def _write_nowait(self, data: bytes) -> int:
        try:
            return os.pwritev(self.fd, (data,), -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _NOWAIT_UNSUPPORTED:
                raise
        # Also possible later on: a child that splices into a pipe makes it unsupported (fs/splice.c).
        self._choose(nowait=False)
        return self.write(data)

    def _open_own(self) -> Callable[[bytes], int] | None:
        if stat.S_ISSOCK(os.fstat(self.fd).st_mode):
            return self._open_own_socket()
        # O_APPEND: if a file has taken the place of N in the meantime, it is not overwritten.
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC
        try:
            own = os.open(f"/proc/self/fd/{self.fd}", flags)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a pipe without a reader (fifo(7))
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
            return None
        self._release_with(os.close, own)
        return lambda data: os.write(own, data)

    def _open_own_socket(self) -> Callable[[bytes], int]:
        # Without SOCK_NONBLOCK Python may set O_NONBLOCK on the shared socket (socket.setdefaulttimeout).
        own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, fileno=os.dup(self.fd))
        self._release_with(own.close)
        return lambda data: own.send(data, socket.MSG_DONTWAIT)

    def _release_with(self, release: Callable[..., Any], *args: Any) -> None:
        self._release = weakref.finalize(self, release, *args)
        self._release.atexit = False  # the exit handler that writes the last lines may run later

    def _refuse(self, _data: bytes) -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _write_if_room(self, data: bytes) -> int:
        # A pipe with room takes a whole chunk, unless another writer is faster.
        if not self._has_room(0):
            self._refuse(data)
        return os.write(self.fd, data)


def _may_block(fd: int) -> bool:
    with contextlib.suppress(OSError):  # the write will raise it
        mode = os.fstat(fd).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and os.isatty(fd))
    return False

"""Writing to one descriptor without ever blocking, and without touching flags that others share.

O_NONBLOCK belongs to the open file, so setting it on an inherited descriptor hits everybody else who writes
there. Instead, the first of these that works:

1. a regular file, or a device that is no terminal: a plain write, it waits for nobody;
2. RWF_NOWAIT with each write (pwritev2(2)): pipes and sockets from Linux 6.4 on;
3. a socket: MSG_DONTWAIT with each send;
4. a pipe or terminal: a non-blocking descriptor of our own, by opening /proc/self/fd/N anew. It stays with
   what N was then, until a write fails;
5. none of them (another user's pipe on an older kernel, a system other than Linux): `write` refuses, and
   all is left to `write_aside`, which a thread may call.
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

# What a kernel, a sandbox or a kind of file answers that does not know RWF_NOWAIT.
_UNKNOWN: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ESPIPE}


class Outlet:
    """One descriptor, opened for writing by somebody else.

    Args:
        fd: Its number.

    Attributes:
        write: Writes these bytes or a part of them and returns how many; raises BlockingIOError instead of
            waiting, and what `os.write` raises.
        write_aside: The same for a thread that may be held up for a moment: it always gets somewhere.
    """

    write: Callable[[bytes], int]
    write_aside: Callable[[bytes], int]

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._release: weakref.finalize[Any, Any] | None = None
        self.forget()

    def forget(self) -> None:
        """Find out anew with the next write what is behind the number."""
        if self._release is not None:
            self._release()
            self._release = None
        self.write = self._write_first
        self.write_aside = self._write_first_aside

    def wait(self, patience: timedelta) -> None:
        """Wait until there is room, or nothing to wait for any more (poll(2), POLLOUT)."""
        self._has_room(patience.total_seconds())

    def _has_room(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def _write_first(self, data: bytes) -> int:
        self._choose(nowait=hasattr(os, "RWF_NOWAIT"))
        return self.write(data)

    def _write_first_aside(self, data: bytes) -> int:
        self._choose(nowait=hasattr(os, "RWF_NOWAIT"))
        return self.write_aside(data)

    def _choose(self, *, nowait: bool) -> None:
        write = _waits_for_nobody(self.fd) or (self._write_nowait if nowait else self._own())
        self.write = self._refuse if write is None else write
        self.write_aside = self._write_if_room if write is None else write

    def _write_nowait(self, data: bytes) -> int:
        try:
            return os.pwritev(self.fd, (data,), -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
        # Also in the middle: a child that splices into a pipe takes the kernel's promise away (fs/splice.c).
        self._choose(nowait=False)
        return self.write(data)

    def _own(self) -> Callable[[bytes], int] | None:
        if stat.S_ISSOCK(os.fstat(self.fd).st_mode):
            return self._own_socket()
        # O_APPEND: should a file have taken the place meanwhile, it is not overwritten.
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC
        try:
            own = os.open(f"/proc/self/fd/{self.fd}", flags)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a pipe without a reader (fifo(7))
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
            return None
        self._keep(os.close, own)
        return lambda data: os.write(own, data)

    def _own_socket(self) -> Callable[[bytes], int]:
        # SOCK_NONBLOCK, or Python may set O_NONBLOCK on it (socket.setdefaulttimeout).
        own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, fileno=os.dup(self.fd))
        self._keep(own.close)
        return lambda data: own.send(data, socket.MSG_DONTWAIT)

    def _keep(self, release: Callable[..., Any], *args: Any) -> None:
        self._release = weakref.finalize(self, release, *args)
        self._release.atexit = False  # the last lines leave in an exit handler that may run later

    def _refuse(self, _data: bytes) -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _write_if_room(self, data: bytes) -> int:
        # With room in a pipe a whole piece fits. Only another writer can take it away in between.
        if not self._has_room(0):
            self._refuse(data)
        return os.write(self.fd, data)


def _waits_for_nobody(fd: int) -> Callable[[bytes], int] | None:
    with contextlib.suppress(OSError):  # the write itself will say what is wrong
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and os.isatty(fd)):
            return None
    return lambda data: os.write(fd, data)

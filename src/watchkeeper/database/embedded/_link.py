"""The parent's end of the supervisor: starts it, hears its events, and ends it by letting go of a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAM: Final = Path(__file__).with_name("_supervisor.py")
_LONGEST_EVENT_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Orders:
    """What the supervisor is told.

    Args:
        state: The state folder.
        data: The data folder, made by `initdb` when it is missing.
        log: File that takes what the server writes.
        initdb: The program with its arguments, but for the folder.
        postgres: The program with all its arguments.
        configuration: Appended to postgresql.conf when the data is made.
        env: Whole environment of both.
        uid: User that runs both; 0 for the supervisor's own.
        gid: Group of that user.
        term_grace: Seconds that the parent has after a SIGTERM to the supervisor.
        stop_patience: Seconds that a fast shutdown may take.
    """

    state: str
    data: str
    log: str
    initdb: Sequence[str]
    postgres: Sequence[str]
    configuration: str
    env: dict[str, str]
    uid: int
    gid: int
    term_grace: float
    stop_patience: float


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None when another process has it.

    Raises:
        OSError: The file cannot be made.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


class Link:
    """A running supervisor.

    It lives as long as this object's end of a pipe is open, whatever becomes of the process. A forked child
    closes its copy; a child forked by other means than `os.fork` keeps the server alive until it ends or execs.
    """

    _open: Final[weakref.WeakSet[Link]] = weakref.WeakSet()

    def __init__(self, process: subprocess.Popen[bytes], lifeline: int) -> None:
        self._process = process
        self._lifeline = lifeline
        self._events = asyncio.StreamReader(limit=_LONGEST_EVENT_BYTES)
        self._transport: asyncio.ReadTransport | None = None
        Link._open.add(self)

    @classmethod
    async def start(cls, lock_fd: int, orders: Orders) -> Link:
        """Start a supervisor and hand it the lock.

        Args:
            lock_fd: From `try_lock`; closed here, the supervisor has its own.
            orders: What it is to run.
        """
        reader, writer = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - takes milliseconds, and works on any loop and thread
                [sys.executable, "-I", str(_PROGRAM)],
                stdin=reader,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                start_new_session=True,
                pass_fds=(lock_fd,),
            )
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
            os.close(lock_fd)
        link = cls(process, writer)
        os.write(writer, json.dumps({**asdict(orders), "lock_fd": lock_fd}).encode() + b"\n")
        events = link._events
        link._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(events), process.stdout
        )
        return link

    @property
    def pid(self) -> int:
        """The supervisor's process number."""
        return self._process.pid

    async def next_event(self) -> dict[str, Any] | None:
        """Return the next event, or None when the supervisor is gone."""
        line = await self._events.readline()
        if not line.endswith(b"\n"):
            return None
        event: dict[str, Any] = json.loads(line)
        return event

    def let_go(self) -> None:
        """Tell the supervisor to stop the server, without waiting for it."""
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    async def close(self) -> None:
        """Stop the server and wait until the supervisor is gone."""
        self.let_go()
        with contextlib.suppress(ConnectionError):
            while await self._events.read(65536):
                pass
        if self._transport is not None:
            self._transport.close()
        # Its stdout is closed: it is about to end, or was killed.
        while self._process.poll() is None:  # noqa: ASYNC110 - no event says it on every loop and thread
            await asyncio.sleep(0.005)


def _close_copies() -> None:
    for link in list(Link._open):
        link.let_go()


os.register_at_fork(after_in_child=_close_copies)

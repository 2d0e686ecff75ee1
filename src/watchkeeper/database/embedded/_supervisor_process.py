"""The supervisor as its parent sees it: started with a spec, sending events, ended by closing a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import weakref
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from watchkeeper.database.embedded._spec import ServerSpec

# Loads the package under its full name without its parent packages, which cost 100 ms and more. Its modules
# therefore import each other only as `from full.name import something`; other forms import the parents.
_BOOT: Final = (
    "import importlib.util, sys; name, path = sys.argv[1:3];"
    " spec = importlib.util.spec_from_file_location(name, path);"
    " sys.modules[name] = module = importlib.util.module_from_spec(spec);"
    " spec.loader.exec_module(module); module.main()"
)
_PACKAGE: Final = f"{__package__}._supervisor"
_PROGRAM: Final = Path(__file__).parent / "_supervisor" / "__init__.py"
_LONGEST_EVENT_BYTES: Final = 1 << 20
_REAP_POLL_S: Final = 0.005
_STRAY_LINES: Final = 20


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None when another process has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.ExitStack() as unless_locked:
        unless_locked.callback(os.close, fd)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unless_locked.pop_all()
            return fd
    return None


class SupervisorProcess:
    """A running supervisor; it ends when this process closes its end of a pipe, or ends itself.

    Forked children close their copies; only a child forked by a C library keeps the server running.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        lifeline: int,
        events: asyncio.StreamReader,
        transport: asyncio.ReadTransport,
    ) -> None:
        self._process = process
        self._lifeline = lifeline
        self._events = events
        self._transport = transport
        self.stray_lines: deque[str] = deque(maxlen=_STRAY_LINES)
        _RUNNING.add(self)

    @classmethod
    async def start(cls, lock_fd: int, spec: ServerSpec) -> Self:
        """Start a supervisor and pass it the lock; the descriptor is closed in this process."""
        with contextlib.ExitStack() as ours:
            ours.callback(os.close, lock_fd)
            events = asyncio.StreamReader(limit=_LONGEST_EVENT_BYTES)
            transport, event_fd = await _open_event_pipe(events)
            ours.callback(os.close, event_fd)
            # No await from here on, so this cannot be cancelled half-way.
            spec_fd, lifeline = os.pipe()
            ours.callback(os.close, spec_fd)
            try:
                process = subprocess.Popen(  # noqa: ASYNC220 - takes milliseconds, and asyncio's own blocks too
                    [sys.executable, "-I", "-c", _BOOT, _PACKAGE, str(_PROGRAM), spec.state],
                    stdin=spec_fd,
                    stdout=event_fd,
                    stderr=event_fd,
                    cwd="/",
                    start_new_session=True,  # Ctrl-C is for the parent
                    pass_fds=(lock_fd,),
                )
            except BaseException:
                os.close(lifeline)
                transport.close()
                raise
            with contextlib.suppress(BrokenPipeError):  # it has already ended, as its events will show
                os.write(lifeline, json.dumps({**asdict(spec), "lock_fd": lock_fd}).encode() + b"\n")
            return cls(process, lifeline, events, transport)

    @property
    def is_over(self) -> bool:
        """Whether the supervisor has ended."""
        return self._process.poll() is not None

    async def next_event(self) -> dict[str, Any] | None:
        """Return the next event, or None when the supervisor has ended."""
        while line := await self._events.readline():
            if line.startswith(b"{"):
                event: dict[str, Any] = json.loads(line)
                return event
            self.stray_lines.append(line.decode("utf-8", "replace"))
        return None

    def release(self) -> None:
        """Make the supervisor stop the server, without waiting for it."""
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    def __del__(self) -> None:
        self.release()

    async def close(self) -> None:
        """Stop the server and wait until the supervisor has ended."""
        self.release()
        while await self._events.read(65536):
            pass
        self._transport.close()
        # It has closed its stdout and is about to end. SIGCHLD does not reach every thread and event loop.
        while self._process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(_REAP_POLL_S)


_RUNNING: Final[weakref.WeakSet[SupervisorProcess]] = weakref.WeakSet()


async def _open_event_pipe(events: asyncio.StreamReader) -> tuple[asyncio.ReadTransport, int]:
    """Return the transport of a pipe that feeds `events`, and the pipe's end for the supervisor."""
    reading, writing = os.pipe()
    file = os.fdopen(reading, "rb", 0)
    with contextlib.ExitStack() as unless_connected:
        unless_connected.callback(os.close, writing)
        unless_connected.callback(file.close)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(events), file
        )
        unless_connected.pop_all()
    return transport, writing


def _release_copies() -> None:  # pragma: no cover - runs in forked children
    for process in list(_RUNNING):
        process.release()


os.register_at_fork(after_in_child=_release_copies)

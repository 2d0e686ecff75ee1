"""The parent's handle on the supervisor: starts it with a spec, reads its events, stops it by a pipe."""

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
# therefore use only `from full.name import x` for each other: other forms import the parent packages.
_BOOT: Final = (
    "import importlib.util, sys; name, path = sys.argv[1:3];"
    " spec = importlib.util.spec_from_file_location(name, path);"
    " sys.modules[name] = module = importlib.util.module_from_spec(spec);"
    " spec.loader.exec_module(module); module.main()"
)
_PACKAGE: Final = f"{__package__}._supervisor"
_ENTRY_FILE: Final = Path(__file__).parent / "_supervisor" / "__init__.py"
_MAX_EVENT_BYTES: Final = 1 << 20
_REAP_POLL_S: Final = 0.005
_MAX_STRAY_LINES: Final = 20


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None if another process holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, fd)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            cleanup.pop_all()
            return fd
    return None


class SupervisorProcess:
    """A running supervisor; it ends when this process closes its end of a pipe or exits.

    Forked children close their copies of the pipe; one forked by a C library keeps the server running.
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
        self.stray_lines: deque[str] = deque(maxlen=_MAX_STRAY_LINES)
        _RUNNING.add(self)

    @classmethod
    async def start(cls, lock_fd: int, spec: ServerSpec) -> Self:
        """Start a supervisor and pass it the lock; the descriptor is closed in this process."""
        with contextlib.ExitStack() as to_close:
            to_close.callback(os.close, lock_fd)
            events = asyncio.StreamReader(limit=_MAX_EVENT_BYTES)
            transport, event_fd = await _open_event_pipe(events)
            to_close.callback(os.close, event_fd)
            # No await below, so cancellation cannot interrupt this.
            spec_fd, lifeline = os.pipe()
            to_close.callback(os.close, spec_fd)
            try:
                process = subprocess.Popen(  # noqa: ASYNC220 - milliseconds; asyncio's version blocks too
                    [sys.executable, "-I", "-c", _BOOT, _PACKAGE, str(_ENTRY_FILE), spec.state],
                    stdin=spec_fd,
                    stdout=event_fd,
                    stderr=event_fd,
                    cwd="/",
                    start_new_session=True,  # Ctrl-C must reach only the parent
                    pass_fds=(lock_fd,),
                )
            except BaseException:
                os.close(lifeline)
                transport.close()
                raise
            with contextlib.suppress(BrokenPipeError):  # it has already exited; its events say why
                os.write(lifeline, json.dumps({**asdict(spec), "lock_fd": lock_fd}).encode() + b"\n")
            return cls(process, lifeline, events, transport)

    @property
    def has_exited(self) -> bool:
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

    def request_stop(self) -> None:
        """Make the supervisor stop the server, without waiting for it."""
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    def __del__(self) -> None:
        self.request_stop()

    async def close(self) -> None:
        """Stop the server and wait until the supervisor has ended."""
        self.request_stop()
        while await self._events.read(65536):
            pass
        self._transport.close()
        # It has closed its stdout and is about to exit. Polled: not every event loop gets SIGCHLD.
        while self._process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(_REAP_POLL_S)


_RUNNING: Final[weakref.WeakSet[SupervisorProcess]] = weakref.WeakSet()


async def _open_event_pipe(events: asyncio.StreamReader) -> tuple[asyncio.ReadTransport, int]:
    """Return the transport of a pipe that feeds `events`, and the pipe's end for the supervisor."""
    read_fd, write_fd = os.pipe()
    file = os.fdopen(read_fd, "rb", 0)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, write_fd)
        cleanup.callback(file.close)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(events), file
        )
        cleanup.pop_all()
    return transport, write_fd


def _release_copies() -> None:  # pragma: no cover - runs in forked children
    for process in list(_RUNNING):
        process.request_stop()


os.register_at_fork(after_in_child=_release_copies)

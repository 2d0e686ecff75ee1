"""Creates the data, runs the server, and restarts it when it ends unexpectedly."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.database.embedded._supervisor._parent import FailedError, StoppedError, send_event
from watchkeeper.database.embedded._supervisor._predecessor import (
    is_ready,
    is_server,
    orphaned_backends,
    recorded_pid,
    send_signal,
)
from watchkeeper.database.embedded._supervisor._program import Program
from watchkeeper.database.embedded._supervisor._server_log import ServerLog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_READY_POLL_S: Final = 0.01
_LONGEST_WAIT_S: Final = 60.0
_FIRST_BACK_OFF_S: Final = 0.1
_LONGEST_BACK_OFF_S: Final = 5.0
_STABLE_S: Final = 60.0
_PREDECESSOR_TIMEOUT_S: Final = 30.0
_ORPHAN_TIMEOUT_S: Final = 1.0
_KILL_TIMEOUT_S: Final = 5.0
_FULL_AGAIN_S: Final = 60.0
_FULL: Final = b"No space left on device"
# What a server reports while its killed predecessor is still exiting.
_PASSING: Final = (
    'lock file "postmaster.pid" already exists',
    '.lock" already exists',
    "pre-existing shared memory block",
)


class Supervisor:
    """Runs one server; `spec` has the fields of `ServerSpec`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._state, self._data = Path(spec["state"]), Path(spec["data"])
        self._server_log = ServerLog(Path(spec["log"]))
        self._account: dict[str, Any] = (
            {"user": spec["uid"], "group": spec["gid"], "extra_groups": []} if spec["uid"] else {}
        )
        self._program: Program | None = None
        self._parent_lives = True
        self._stop_at = float("inf")
        self._full_told_at = float("-inf")
        self._wake, waker = os.pipe()
        for end in (self._wake, waker):
            os.set_blocking(end, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the parent's thread may have blocked some
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it only interrupts the select
        signal.signal(signal.SIGINT, lambda *_: self._stop_within(0))
        signal.signal(signal.SIGTERM, lambda *_: self._stop_within(spec["term_grace"]))

    def run(self) -> None:
        """Run the server until the parent ends; raise `FailedError` or `OSError` if it cannot be started."""
        try:
            self._make_data()
            self._keep_running()
        except StoppedError:
            pass
        finally:
            self._end_program()

    # -- waiting

    def _stop_within(self, seconds: float) -> None:
        self._stop_at = min(self._stop_at, time.monotonic() + seconds)

    def _poll(self, seconds: float) -> None:
        """Wait at most `seconds` for the parent, a signal or output of the server."""
        sources = [self._wake]
        if self._parent_lives:
            sources.append(0)
        if self._program is not None and not self._program.output_closed:
            sources.append(self._program.output)
        ready = select.select(sources, [], [], max(seconds, 0))[0]
        if self._wake in ready:
            os.read(self._wake, 512)
        if 0 in ready and not os.read(0, 512):
            self._parent_lives = False
            self._stop_within(0)
        self._read_log()

    def _read_log(self) -> None:
        text = self._program.read() if self._program is not None else b""
        if not text:
            return
        self._server_log.write(text)
        now = time.monotonic()
        if _FULL in text and now >= self._full_told_at + _FULL_AGAIN_S:
            self._full_told_at = now
            send_event({"event": "full", "log": self._server_log.tail})

    def _wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Poll until `until()` is true; return whether it was within `seconds`, or raise `StoppedError`."""
        end = time.monotonic() + seconds
        while not until():
            now = time.monotonic()
            if now >= self._stop_at:
                raise StoppedError
            if now >= end:
                return False
            self._poll(min(end, self._stop_at, now + _LONGEST_WAIT_S) - now)
        return True

    # -- programs

    def _start(self, argv: Sequence[str], death_signal: signal.Signals, **environ: str) -> Program:
        self._server_log.begin()
        self._program = Program(argv, {**self._spec["env"], **environ}, self._account, death_signal)
        return self._program

    def _reap(self, program: Program) -> int:
        self._read_log()
        self._program = None
        return program.close()

    def _end_program(self) -> None:
        """Stop the current program: by a fast shutdown, then by an immediate one, then by SIGKILL."""
        program = self._program
        if program is None:
            return
        for number, timeout in (
            (signal.SIGINT, self._spec["stop_timeout"]),
            (signal.SIGQUIT, _KILL_TIMEOUT_S),
            (signal.SIGKILL, _KILL_TIMEOUT_S),
        ):
            if program.has_exited():
                break
            program.send_signal(number)
            end = time.monotonic() + timeout
            while not program.has_exited() and (left := end - time.monotonic()) > 0:
                self._poll(left)
        self._reap(program)

    # -- data

    def _make_data(self) -> None:
        """Run initdb if there is no data, in a temporary folder, so that `data` is always complete."""
        leftovers = list(self._state.glob("data.new-*"))
        if not leftovers and (self._data / "PG_VERSION").exists():
            return
        import shutil  # noqa: PLC0415 - costs a warm start 10 ms

        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        if (self._data / "PG_VERSION").exists():
            return
        if self._data.exists() and any(self._data.iterdir()):
            raise FailedError("foreign data", None, [])
        new = self._state / f"data.new-{os.getpid()}"
        new.mkdir(mode=0o700)
        try:
            self._fill(new)
            new.rename(self._data)
            _sync_folder(self._state)
        finally:
            self._end_program()
            shutil.rmtree(new, ignore_errors=True)

    def _fill(self, new: Path) -> None:
        if self._account:
            os.chown(new, self._account["user"], self._account["group"])
        # The processes that initdb starts end with it, because it reads their output.
        program = self._start([*self._spec["initdb"], "-D", str(new)], signal.SIGKILL)
        self._wait(float("inf"), program.has_exited)
        if code := self._reap(program):
            raise FailedError("initdb", code, self._server_log.tail)
        # The folder may belong to another account by now: follow none of its links as root.
        fd = os.open(new / "postgresql.conf", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(self._spec["configuration"])
            file.flush()
            os.fsync(file.fileno())

    # -- the server

    def _keep_running(self) -> None:
        was_ready = False
        back_off = _FIRST_BACK_OFF_S
        since = time.monotonic()  # the first start, or the last unexpected end
        while True:
            started_at = time.monotonic()
            self._end_predecessor(orphans_too=started_at - since > _ORPHAN_TIMEOUT_S)
            code, ready = self._run_once()
            if self._stop_at < float("inf"):
                raise StoppedError  # systemd signalled the server too, and it was faster than the parent
            now, log = time.monotonic(), self._server_log.tail
            passing = any(text in line for line in log for text in _PASSING)
            was_ready = was_ready or ready
            if not was_ready and not (passing and now - since < _PREDECESSOR_TIMEOUT_S):
                raise FailedError("postgres", code, log)
            if ready:
                since = now
                send_event({"event": "down", "code": code, "log": log})
            if passing or now - started_at > _STABLE_S:
                back_off = _FIRST_BACK_OFF_S
            self._wait(back_off)
            back_off = min(back_off * 2, _LONGEST_BACK_OFF_S)

    def _run_once(self) -> tuple[int, bool]:
        """Run the server until it ends; return its exit status and whether it was ready."""
        stale = recorded_pid(self._data)
        # No process has that id now, or an unrelated one has, as in a restarted container, where
        # PostgreSQL would never start again. It ignores the id in this variable, which pg_ctl sets for
        # the shell that started it (CreateLockFile, src/backend/utils/init/miscinit.c), and still refuses
        # while the old server's shared memory is in use.
        environ = {} if stale is None else {"PG_GRANDPARENT_PID": str(stale)}
        program = self._start(self._spec["postgres"], signal.SIGINT, **environ)
        while not self._wait(_READY_POLL_S, program.has_exited):
            if is_ready(self._data, program.pid):
                send_event({"event": "ready", "pid": program.pid})
                self._wait(float("inf"), program.has_exited)
                return self._reap(program), True
        return self._reap(program), False

    def _end_predecessor(self, *, orphans_too: bool) -> None:
        """Stop a server that outlived its supervisor and, on request, backends that outlived their server."""
        if sys.platform != "linux":
            return
        pid = recorded_pid(self._data)
        if pid is not None and is_server(pid, self._data):
            # The parent-death signal has usually stopped it already.
            for number, timeout in (
                (signal.SIGINT, self._spec["stop_timeout"]),
                (signal.SIGQUIT, _KILL_TIMEOUT_S),
            ):
                send_signal(pid, number)
                if self._wait_gone(pid, timeout):
                    break
        if orphans_too:
            for orphan in orphaned_backends(self._data):
                send_signal(orphan, signal.SIGQUIT)

    def _wait_gone(self, pid: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while is_server(pid, self._data):
            if time.monotonic() > end:
                return False
            self._wait(_READY_POLL_S)
        return True


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # not supported by some file systems
            os.fsync(fd)
    finally:
        os.close(fd)

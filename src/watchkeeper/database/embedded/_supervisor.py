"""The process that owns an embedded PostgreSQL; run by `EmbeddedServer`, needs the standard library only.

Started as `python -I _supervisor.py`, in a session of its own. Its first line on stdin is the orders, as JSON.
After that stdin only says that the parent lives: its end, however it came about, stops the server. Stdout
takes one JSON line an event:

- `{"event": "ready", "pid"}`: clients can connect.
- `{"event": "down", "code", "log"}`: the server ended by itself after it had been ready; it is started again.
- `{"event": "failed", "stage", "code", "log"}`: it cannot be started; the supervisor ends.
- `{"event": "full", "log"}`: the server wrote that the disk is full; it may still run.

SIGINT stops the server at once. SIGTERM, which systemd sends to all processes of a service together, leaves
the parent `term_grace` seconds to finish its requests and stop the server by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_READY_LINE: Final = 7  # of postmaster.pid, src/include/utils/pidfile.h
_READY_POLL_S: Final = 0.01
_IDLE_S: Final = 60.0
_LOG_LIMIT_BYTES: Final = 4 << 20
_TAIL_LINES: Final = 40
_RETRY_S: Final = 0.1
_RETRY_FOR_S: Final = 30.0
_LONGEST_BACK_OFF_S: Final = 5.0
_STABLE_S: Final = 60.0
_STRAGGLERS_AFTER_S: Final = 1.0
_KILL_PATIENCE_S: Final = 5.0
_FULL_AGAIN_S: Final = 60.0
# What a server says whose predecessor was killed and is not gone yet.
_PASSING: Final = (
    '"postmaster.pid" already exists',
    "pre-existing shared memory block",
    '.lock" already exists',
)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class StoppedError(Exception):
    """The parent is gone or a signal asked for the end: the server is to stop."""


class FailedError(Exception):
    """The server cannot be started.

    Args:
        stage: What was tried.
        code: Exit status of the program, None when it never ran.
        log: Its last lines.
    """

    def __init__(self, stage: str, code: int | None, log: Sequence[str]) -> None:
        super().__init__(stage)
        self.event = {"event": "failed", "stage": stage, "code": code, "log": list(log)}


class Log:
    """The server's log: a file that never grows over twice its limit, and the last lines in memory.

    Args:
        path: The file; the one before it gets the suffix `.1`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._fd = -1
        self._partial = b""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def write(self, chunk: bytes) -> None:
        """Take what the server wrote; what the disk does not take is only kept in memory."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self.tail.extend(line.decode("utf-8", "replace") for line in lines)
        with contextlib.suppress(OSError):
            if self._fd < 0 or self._size > _LOG_LIMIT_BYTES:
                self._open()
            self._size += os.write(self._fd, chunk)

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.replace(f"{self._path}.1")
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size


class Supervisor:
    """Makes the data, runs the server, and starts it again when it ends by itself.

    Args:
        orders: What `EmbeddedServer` sent: see `_link.Orders`.
    """

    def __init__(self, orders: dict[str, Any]) -> None:
        self._orders = orders
        self._state = Path(orders["state"])
        self._data = Path(orders["data"])
        self._log = Log(Path(orders["log"]))
        self._account: dict[str, Any] = (
            {"user": orders["uid"], "group": orders["gid"], "extra_groups": []} if orders["uid"] else {}
        )
        self._stop_at = float("inf")
        self._parent_lives = True
        self._full_until = 0.0
        self._child: subprocess.Popen[bytes] | None = None
        self._wake, wake_writer = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only wakes the select
        signal.signal(signal.SIGINT, lambda *_: self._stop_within(0))
        signal.signal(signal.SIGTERM, lambda *_: self._stop_within(orders["term_grace"]))

    def run(self) -> None:
        """Own the server until the parent is gone.

        Raises:
            FailedError: It cannot be started.
        """
        with contextlib.suppress(StoppedError):
            self._make_data()
            self._keep_running()

    # -- waiting

    def _stop_within(self, seconds: float) -> None:
        self._stop_at = min(self._stop_at, time.monotonic() + seconds)

    def _pump(self, seconds: float) -> None:
        """Wait for the parent, a signal or a line of the child's log, at most `seconds`."""
        output = self._child.stdout if self._child else None
        sources = [self._wake]
        if self._parent_lives:
            sources.append(0)
        if output is not None:
            sources.append(output.fileno())
        ready = select.select(sources, [], [], max(seconds, 0))[0]
        if self._wake in ready:
            os.read(self._wake, 512)
        if 0 in ready and not os.read(0, 512):
            self._parent_lives = False
            self._stop_within(0)
        if output is not None and output.fileno() in ready:
            self._read_log(output.fileno())

    def _read_log(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(fd, 65536):
                self._log.write(chunk)
                now = time.monotonic()
                if b"No space left on device" in chunk and now >= self._full_until:
                    self._full_until = now + _FULL_AGAIN_S
                    tell({"event": "full", "log": list(self._log.tail)})

    def _wait(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Pump until `until()` holds.

        Returns:
            Whether it held within `seconds`.

        Raises:
            StoppedError: The server is to stop.
        """
        end = time.monotonic() + seconds
        while not until():
            now = time.monotonic()
            if now >= self._stop_at:
                raise StoppedError
            if now >= end:
                return False
            self._pump(min(end, self._stop_at, now + _IDLE_S) - now)
        return True

    # -- programs

    def _start(self, argv: Sequence[str], environ: dict[str, str], death_signal: signal.Signals) -> None:
        supervisor = os.getpid()

        def die_with_supervisor() -> None:
            if sys.platform == "linux":
                _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal)
                if os.getppid() != supervisor:
                    os._exit(1)

        self._log.tail.clear()
        self._child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            env=environ,
            start_new_session=True,
            preexec_fn=die_with_supervisor,  # noqa: PLW1509 - this process has one thread
            umask=0o077,
            **self._account,
        )
        assert self._child.stdout is not None  # noqa: S101 - tells the type checker
        os.set_blocking(self._child.stdout.fileno(), False)

    def _is_over(self) -> bool:
        return self._child is None or self._child.poll() is not None

    def _let_go(self) -> int:
        """Forget the child that ended; return its exit status."""
        child, self._child = self._child, None
        if child is None or child.stdout is None:
            return 0
        self._read_log(child.stdout.fileno())
        child.stdout.close()  # what it left running gets EPIPE, which PostgreSQL ignores
        return child.returncode

    def _end_child(self) -> None:
        """Stop the child: a clean fast shutdown, then less and less kindly."""
        for number, patience in (
            (signal.SIGINT, self._orders["stop_patience"]),
            (signal.SIGQUIT, _KILL_PATIENCE_S),
            (signal.SIGKILL, _KILL_PATIENCE_S),
        ):
            if self._child is None or self._is_over():
                break
            self._child.send_signal(number)
            end = time.monotonic() + patience
            while not self._is_over() and time.monotonic() < end:
                self._pump(end - time.monotonic())
        self._let_go()

    # -- data

    def _make_data(self) -> None:
        """Run initdb if there is no data: in a temporary folder, so that what has the name is complete."""
        for left in self._state.glob("data.new-*"):
            shutil.rmtree(left, ignore_errors=True)
        if (self._data / "PG_VERSION").exists():
            return
        if self._data.exists() and any(self._data.iterdir()):
            raise FailedError("foreign data", None, [])
        new = Path(tempfile.mkdtemp(prefix="data.new-", dir=self._state))
        try:
            if self._account:
                os.chown(new, self._account["user"], self._account["group"])
            # initdb's children end with it: they read what it writes.
            self._start([*self._orders["initdb"], "-D", str(new)], self._orders["env"], signal.SIGKILL)
            self._wait(float("inf"), self._is_over)
            if code := self._let_go():
                raise FailedError("initdb", code, self._log.tail)
            with (new / "postgresql.conf").open("a", encoding="utf-8") as file:
                file.write(self._orders["configuration"])
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._data)
            sync_folder(self._state)
        finally:
            self._end_child()
            shutil.rmtree(new, ignore_errors=True)

    # -- the server

    def _keep_running(self) -> None:
        back_off = _RETRY_S
        was_ready = False
        give_up_at = time.monotonic() + _RETRY_FOR_S
        while True:
            started_at = time.monotonic()
            code, ready = self._run_once(
                ensure_gone=started_at > give_up_at - _RETRY_FOR_S + _STRAGGLERS_AFTER_S
            )
            log = list(self._log.tail)
            was_ready = was_ready or ready
            passing = any(text in line for line in log for text in _PASSING)
            if not was_ready and not (passing and time.monotonic() < give_up_at):
                raise FailedError("postgres", code, log)
            if ready:
                tell({"event": "down", "code": code, "log": log})
                give_up_at = time.monotonic() + _RETRY_FOR_S
            if time.monotonic() - started_at > _STABLE_S or passing:
                back_off = _RETRY_S
            self._wait(back_off, lambda: False)
            back_off = min(back_off * 2, _LONGEST_BACK_OFF_S)

    def _run_once(self, *, ensure_gone: bool) -> tuple[int, bool]:
        """Run the server until it ends by itself; return its exit status and whether it was ready."""
        self._end_predecessor(everything=ensure_gone)
        environ = dict(self._orders["env"])
        stale = self._predecessor()
        if stale is not None:
            # The number in postmaster.pid belongs to nobody now, or to another program: after a restart of a
            # container that is the rule. PostgreSQL then refuses to start for ever, but for this number, which
            # pg_ctl uses for the shell that started it. It still checks the shared memory.
            environ["PG_GRANDPARENT_PID"] = str(stale)
        self._start(self._orders["postgres"], environ, signal.SIGINT)
        ready = False
        try:
            while not self._wait(_IDLE_S if ready else _READY_POLL_S, self._is_over):
                if not ready and self._is_ready():
                    ready = True
                    tell({"event": "ready", "pid": self._child.pid if self._child else None})
        except StoppedError:
            self._end_child()
            raise
        return self._let_go(), ready

    def _pid_file(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def _is_ready(self) -> bool:
        lines = self._pid_file()
        return (
            self._child is not None
            and len(lines) > _READY_LINE
            and lines[0] == str(self._child.pid)
            and lines[_READY_LINE].strip() == "ready"
        )

    def _predecessor(self) -> int | None:
        lines = self._pid_file()
        return int(lines[0]) if lines and lines[0].isdigit() else None

    def _serves_our_data(self, pid: int) -> bool:
        try:
            program = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
            return program == "postgres" and Path(f"/proc/{pid}/cwd").readlink() == self._data
        except OSError:
            return False

    def _end_predecessor(self, *, everything: bool) -> None:
        """Stop a server that outlived its supervisor, and, when told, the backends that outlived their server.

        We hold the lock, so nobody else has a right to run one.
        """
        if sys.platform != "linux":
            return
        pid = self._predecessor()
        if pid is not None and self._serves_our_data(pid):
            # The parent-death signal has usually told it already.
            signal_process(pid, signal.SIGINT)
            if not self._wait_gone(pid, self._orders["stop_patience"]):
                signal_process(pid, signal.SIGQUIT)
                self._wait_gone(pid, _KILL_PATIENCE_S)
        if everything:
            for entry in Path("/proc").glob("[0-9]*"):
                if self._serves_our_data(int(entry.name)):
                    signal_process(int(entry.name), signal.SIGQUIT)

    def _wait_gone(self, pid: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._wait(0.02, lambda: not self._serves_our_data(pid)):
                return True
        return False


def signal_process(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def tell(event: dict[str, Any]) -> None:
    """Send the parent an event; a parent that is gone or does not read misses it."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")


def read_orders() -> dict[str, Any]:
    """Read the first line of stdin, and nothing behind it."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 65536)
        if not chunk:
            raise StoppedError
        line += chunk
    orders: dict[str, Any] = json.loads(line)
    return orders


def main() -> NoReturn:
    """Own the server as ordered on stdin."""
    os.umask(0o077)
    os.set_blocking(1, False)
    try:
        orders = read_orders()
        # The lock came with its descriptor; it must end with this process, not with PostgreSQL's.
        os.set_inheritable(orders["lock_fd"], False)
        os.ftruncate(orders["lock_fd"], 0)
        os.pwrite(orders["lock_fd"], b"%d\n" % os.getpid(), 0)
        Supervisor(orders).run()
    except StoppedError:
        pass
    except FailedError as error:
        tell(error.event)
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to hear of it
        stage = "disk" if isinstance(error, OSError) else "supervisor"
        tell(
            {
                "event": "failed",
                "stage": stage,
                "code": None,
                "log": [*traceback.format_exc().splitlines(), str(error)],
            }
        )
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()

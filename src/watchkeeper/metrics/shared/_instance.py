"""Which processes are one instance of a service, and the folder where they share their metrics.

An instance is what is scraped at one address: the workers of one server. These are one instance:

- the processes that `multiprocessing` started from one parent (the workers of uvicorn, granian, hypercorn);
- the workers of one gunicorn;
- a process and those that it forked;
- processes with the same name in `WATCHKEEPER_METRICS_INSTANCE`, regardless of what started them.

Every other process is an instance by itself. The service's name, the user and (in containers) the pid
namespace are part of an instance's identity, so two instances on one machine never mix.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics.shared._processes import is_running, start_time

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - tmpfs on every Linux; the folder in it is checked
_OWNER: Final = "owner"
_created: Final[Counter[str]] = Counter()


class Instance:
    """The folder of an instance, below `base` (default shared memory), and when the instance started."""

    def __init__(self, service: str, *, name: str | None = None, base: Path | None = None) -> None:
        pid = leader()
        self.ends_with_this_process: bool = name is None and pid == os.getpid()
        # Two keepers of one service in one process are two instances, with the same numbers in each worker.
        ordinal = _created[service]
        _created[service] += 1
        identity = name or f"{_namespace()}/{pid}/{start_time(pid)}/{ordinal}"
        digest = hashlib.blake2s(f"{service}\0{identity}".encode(), digest_size=8).hexdigest()
        parent = _private_folder(base or _base())
        self.folder = parent / f"{service}.{digest}"
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            owner = "" if name is not None else f"{_namespace()} {pid} {start_time(pid)}"
            with contextlib.suppress(FileExistsError), (self.folder / _OWNER).open("x") as file:
                file.write(owner)
            self.started_at = (self.folder / _OWNER).stat().st_mtime  # a unix time
        except OSError as error:
            raise MetricError(f"{self.folder} cannot be created: {error.strerror}.") from error
        _remove_dead(parent, service)


def leader() -> int:
    """Return the pid of the process that all workers of this instance have in common."""
    processes = sys.modules.get("multiprocessing.process")  # loaded in each process that it started
    parent = None if processes is None else processes.parent_process()
    if parent is not None:
        return int(parent.pid)
    if "gunicorn.arbiter" in sys.modules and _is_gunicorn(os.getppid()):
        return os.getppid()
    return os.getpid()


def _is_gunicorn(pid: int) -> bool:
    # The parent of the arbiter may have gunicorn in its arguments too (sh -c), but is another program.
    try:
        same = Path(f"/proc/{pid}/exe").readlink() == Path("/proc/self/exe").readlink()
        return same and b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return "0"


def _base() -> Path:
    usable = _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK)
    if usable:
        return _SHARED_MEMORY
    import tempfile  # noqa: PLC0415 - rarely needed

    return Path(tempfile.gettempdir())


def _private_folder(base: Path) -> Path:
    """Return this user's folder in `base`, after checking that no other user can write to it."""
    folder = base / f"watchkeeper-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise MetricError(f"{folder} cannot be created: {error.strerror}.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise MetricError(f"{folder} must be private to this user: remove it, or set its mode to 0700.")
    return folder


def _remove_dead(parent: Path, service: str) -> None:
    """Remove the folders of instances that were killed: their leader and all workers have ended."""
    for folder in parent.glob(f"{service}.*"):
        with contextlib.suppress(OSError, ValueError):
            namespace, pid, start = (folder / _OWNER).read_text("ascii").split()
            if namespace == _namespace() and not is_running(int(pid), int(start)):
                remove_unused(folder)


def remove_unused(folder: Path) -> None:
    """Remove an instance's folder, unless a worker holds a slot in it."""
    import shutil  # noqa: PLC0415 - slow to import and not needed at the start

    locks = []
    try:
        for path in folder.glob("*.lock"):
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            locks.append(lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # it is in use
    finally:
        for lock in locks:
            os.close(lock)

"""Processes that prune, to be killed with -9 in the middle of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.retention import RetentionDB

ROOT: Final = Path(__file__).parents[2]


class Replicas:
    """Starts processes that prune what is due.

    Args:
        db: The database.
        log: Where their lines go.
        *arguments: `--owner URL` to connect as the owner, `--archive FOLDER` to archive.
    """

    def __init__(self, db: RetentionDB, log: Path, *arguments: str) -> None:
        self._db = db
        with log.open("wb") as lines:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", "support.replica", db.urls.url, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=lines,
                cwd=ROOT / "tests",
                env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"},
                text=True,
            )

    def start(self) -> None:
        """Start one."""
        self._order(self._db.schedule.time.isoformat())

    def kill(self) -> None:
        """Kill the one that was started last, with -9."""
        self._order("kill")

    def wait(self) -> None:
        """Wait until all of them have ended."""
        self._order("wait")

    def close(self) -> None:
        """End them all."""
        self._parent.kill()
        self._parent.communicate()

    def _order(self, order: str) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(f"{order}\n")
        self._parent.stdin.flush()
        assert self._parent.stdout.readline() == "done\n"


def wait_for(happened: Callable[[], bool]) -> None:
    """Wait until something has happened, for ten seconds at most."""
    until = time.monotonic() + 60
    while not happened() and time.monotonic() < until:
        time.sleep(0.002)


def kill_during_run(db: RetentionDB, replicas: Replicas, pause: float) -> int:
    """Start a replica, kill it a moment after it has claimed its run; return how many runs that left open."""
    before = db.count("retention_runs")
    replicas.start()
    wait_for(lambda: db.count("retention_runs") > before)
    time.sleep(pause)
    replicas.kill()
    return db.count("retention_runs WHERE state = 'running'")

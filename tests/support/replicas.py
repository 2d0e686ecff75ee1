"""Processes that prune, to be killed during their runs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from support.retention import RetentionDB

ROOT: Final = Path(__file__).parents[2]


class Replicas:
    """Starts processes that run what is due; `arguments` are those of `support.replica`."""

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
        self._send(self._db.schedule.time.isoformat())

    def kill(self) -> None:
        """Kill the last one with SIGKILL."""
        self._send("kill")

    def wait(self) -> None:
        """Wait for all of them."""
        self._send("wait")

    def close(self) -> None:
        """End all of them."""
        self._parent.kill()
        self._parent.communicate()

    def _send(self, command: str) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(f"{command}\n")
        self._parent.stdin.flush()
        assert self._parent.stdout.readline() == "done\n"


def wait_for(happened: Callable[[], bool]) -> None:
    """Wait until a condition holds, for a minute at most."""
    until = time.monotonic() + 60
    while not happened() and time.monotonic() < until:
        time.sleep(0.002)


def kill_during_run(db: RetentionDB, replicas: Replicas, pause: float) -> int:
    """Kill a replica shortly after it has claimed its run; return how many runs that left open."""
    before = db.count("retention_runs")
    replicas.start()
    wait_for(lambda: db.count("retention_runs") > before)
    time.sleep(pause)
    replicas.kill()
    return db.count("retention_runs WHERE state = 'running'")

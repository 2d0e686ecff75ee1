"""Replicas as processes of their own, to be killed: `python -m support.replica URL`.

For each line on stdin, which names a due, it forks a process that prunes what is due, and answers with its
id. Forking spares each of them the start of an interpreter.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import datetime, timedelta

from support.house import EVENTS, DueAt
from watchkeeper.database import Database
from watchkeeper.logs import Logging, Sink
from watchkeeper.metrics import Registry
from watchkeeper.retention import Retention, RetentionMetrics


async def prune(url: str, due: str) -> None:
    """Run what is due, once."""
    database = Database(url)
    await database.open()
    retention = Retention(
        database,
        [EVENTS],
        schedule=DueAt(datetime.fromisoformat(due)),
        metrics=RetentionMetrics(Registry(), [EVENTS]),
        logging=Logging(service="replica", env="test", sink=Sink(2)),
        lease=timedelta(seconds=1),
    )
    await retention.tick()
    await database.close()


def main(url: str) -> None:
    """Fork a replica for each line."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            asyncio.run(prune(url, line.strip()))
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])

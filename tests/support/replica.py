"""Replicas as processes of their own, to be killed: `python -m support.replica URL [OWNER_URL]`.

A line on stdin that names a due forks a process that prunes what is due; `kill` kills the last one with -9,
`wait` waits for all of them. Each line is answered. Forking spares each replica the start of an interpreter,
and only a parent can kill a child without ever hitting another process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import datetime, timedelta

from support.house import EVENTS, FLAT_OUT, DueAt
from watchkeeper.database import Database
from watchkeeper.logs import Logging, Sink
from watchkeeper.metrics import Registry
from watchkeeper.retention import Retention, RetentionMetrics


async def prune(url: str, owner_url: str | None, due: str) -> None:
    """Run what is due, once."""
    database = Database(url, owner_url=owner_url)
    await database.open()
    retention = Retention(
        database,
        [EVENTS],
        schedule=DueAt(datetime.fromisoformat(due)),
        metrics=RetentionMetrics(Registry(), [EVENTS]),
        logging=Logging(service="replica", env="test", sink=Sink(2)),
        lease=timedelta(seconds=1),
        limits=FLAT_OUT,
    )
    await retention.tick()
    await database.close()


def main(url: str, owner_url: str | None = None) -> None:
    """Do what the lines say."""
    children: list[int] = []
    for line in sys.stdin:
        order = line.strip()
        if order == "kill":
            os.kill(children[-1], signal.SIGKILL)  # it is ours until it is waited for, running or not
            os.waitpid(children.pop(), 0)
        elif order == "wait":
            while children:
                os.waitpid(children.pop(), 0)
        else:
            child = os.fork()
            if not child:
                asyncio.run(prune(url, owner_url, order))
                os._exit(0)
            children.append(child)
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

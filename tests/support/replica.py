"""Replicas as separate processes, to be killed: `python -m support.replica URL [--owner] [--archive]`.

A scheduled time on stdin forks a process that runs what is due; `kill` kills the last one with SIGKILL,
`wait` waits for all. Each line is answered. A fork saves starting an interpreter, and only the parent can
kill a child without the risk of a reused pid. With `--archive FOLDER` rows are archived first.
"""

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
from datetime import datetime, timedelta
from pathlib import Path

from support.retention import EVENTS, UNTHROTTLED, FixedSchedule
from watchkeeper.database import Database
from watchkeeper.logs._logging import Logging
from watchkeeper.logs.output._sink import Sink
from watchkeeper.metrics import Registry
from watchkeeper.retention import FolderArchive, Retention
from watchkeeper.retention._metrics import RetentionMetrics


async def prune(url: str, due: str, owner: str | None, archive: str | None) -> None:
    """Run what is due once."""
    policy = dataclasses.replace(EVENTS, archive=archive is not None)
    database = Database(url, owner_url=owner)
    await database.open()
    retention = Retention(
        database,
        [policy],
        schedule=FixedSchedule(datetime.fromisoformat(due)),
        metrics=RetentionMetrics(Registry(), [policy]),
        logging=Logging(service="replica", env="test", sink=Sink(2)),
        lease=timedelta(seconds=1),
        limits=UNTHROTTLED,
        archive=None if archive is None else FolderArchive(Path(archive)),
    )
    await retention.tick()
    await database.close()


def main() -> None:
    """Execute the lines of stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--owner")
    parser.add_argument("--archive")
    given = parser.parse_args()
    children: list[int] = []
    for line in sys.stdin:
        command = line.strip()
        if command == "kill":
            os.kill(children[-1], signal.SIGKILL)  # the pid is not reused before waitpid
            os.waitpid(children.pop(), 0)
        elif command == "wait":
            while children:
                os.waitpid(children.pop(), 0)
        else:
            child = os.fork()
            if not child:
                asyncio.run(prune(given.url, command, given.owner, given.archive))
                os._exit(0)
            children.append(child)
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

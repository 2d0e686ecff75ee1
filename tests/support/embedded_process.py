"""A process that starts an embedded server with JSON options, for tests that kill it.

It prints a JSON line per event, and stops on SIGTERM, SIGINT or the line `stop` on stdin.
With the option `fork` a child outlives it, holding what a fork inherits.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from watchkeeper.database.embedded._server import EmbeddedServer
from watchkeeper.exceptions import EmbeddedServerError


def report(**fields: Any) -> None:
    """Print one line."""
    print(json.dumps(fields), flush=True)  # noqa: T201 - the test reads it


def outlive() -> NoReturn:
    """Sleep for longer than the test takes."""
    time.sleep(60)
    os._exit(0)


async def run(options: dict[str, Any]) -> None:
    """Start, wait, stop."""
    fork = options.pop("fork", False)
    server = EmbeddedServer(
        Path(options.pop("state")),
        report=lambda level, sentence: report(event="report", level=level, sentence=sentence),
        **options,
    )
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(0, stop.set)
    try:
        await server.start()
    except EmbeddedServerError as error:
        report(event="refused", sentence=str(error))
        return
    if fork and os.fork() == 0:
        outlive()
    report(event="started", owner=server.owner, url=server.url)
    await stop.wait()
    await server.stop()
    report(event="stopped", owner=server.owner)


asyncio.run(run(json.loads(sys.argv[1])))

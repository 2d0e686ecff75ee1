"""What one request line costs when it is written to /dev/null."""

from __future__ import annotations

import asyncio
import logging
import sys
from time import process_time
from typing import TYPE_CHECKING, Any, Final

from bench._figure import OURS, Figure, at_most, share_of
from bench._rounds import Effort, interleave
from bench._tools import MissingError, node_worker
from bench._workers import Worker, workers
from watchkeeper.logs._logging import Logging
from watchkeeper.logs._request_line import RequestLine
from watchkeeper.logs.output._sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable

_BUSY_TURN: Final = 16  # lines in one iteration of the event loop, as for pino
_IDLE: Final = f"{OURS}, one write per line"
_PINO: Final = "pino"
_NODE: Final = {_PINO: "sync", "pino, sync: false": "batched"}
_ID: Final = "4e4ac6d3c1f0a3fb7b2e7d5ff2a0b6c1"
_SPAN: Final = "0b7a3f6a1c55d0e2"
_ROUTE: Final = "/api/listings/{listing_id}"
_SIXTEEN: Final = [(f"/api/listings/{number}?type=house", 2.431 + number / 1000) for number in range(16)]


def measure(effort: Effort) -> Figure:
    """Measure the same line with each logger."""
    lines = effort.of(8000, 3200)
    missing: dict[str, str] = {}
    started = {name: Worker.of(serve, name) for name in WRITERS}
    for name, how in _NODE.items():
        try:
            started[name] = node_worker("line.mjs", how)
        except MissingError as error:
            missing[name] = str(error)
    with workers(started):
        rounds = interleave(started, lambda name: float(started[name].ask(lines)), effort.of(30, 6))
    return Figure(
        name="line",
        title="one request line of 11 fields",
        unit="µs CPU a line",
        rounds=rounds,
        also=(_IDLE,),
        goals=[*at_most("≤ 1.8 µs", rounds, 1.8), *share_of(_PINO, rounds, 2)],
        missing=missing,
    )


def serve(name: str) -> Callable[[int], float]:
    """Return a function that writes a number of lines and returns the µs per line.

    Iterations of the event loop without lines are measured too, and subtracted.
    """
    write = WRITERS[name]()
    turn = 1 if name == _IDLE else _BUSY_TURN
    runner = asyncio.Runner()

    def measure_lines(lines: int) -> float:
        turns = runner.run(_cpu_of(lines, turn, lambda _number: None))
        return (runner.run(_cpu_of(lines, turn, write)) - turns) / lines * 1e6

    return measure_lines


async def _cpu_of(lines: int, turn: int, write: Callable[[int], None]) -> float:
    start = process_time()
    for number in range(lines):
        write(number)
        if number % turn == turn - 1:
            await asyncio.sleep(0)
    return process_time() - start


def _fields(number: int) -> dict[str, Any]:
    url, duration = _SIXTEEN[number % 16]
    return {
        "type": "request",
        "method": "GET",
        "url": url,
        "statusCode": 200,
        "duration": duration,
        "requestId": _ID,
        "route": _ROUTE,
        "outcome": "completed",
        "trace_id": _ID,
        "span_id": _SPAN,
        "bytes": 34,
    }


def _ours() -> Callable[[int], None]:
    log_request = Logging(service="bench", env="development", sink=Sink(1)).log_request

    def write(number: int) -> None:
        url, duration = _SIXTEEN[number % 16]
        log_request(
            RequestLine(
                method="GET",
                url=url,
                status=200,
                duration=duration,
                request_id=_ID,
                route=_ROUTE,
                outcome="completed",
                trace_id=_ID,
                span_id=_SPAN,
                bytes_sent=34,
            )
        )

    return write


def _structlog() -> Callable[[int], None]:
    import structlog

    from bench._handwritten import configure_structlog

    configure_structlog()
    log = structlog.get_logger().bind(service="bench", env="development")
    return lambda number: log.info("request", **_fields(number))


def _python_json_logger() -> Callable[[int], None]:
    from pythonjsonlogger.json import JsonFormatter

    handler = logging.StreamHandler(sys.stdout)
    static = {"service": "bench", "env": "development"}
    handler.setFormatter(JsonFormatter("%(levelname)s %(asctime)s %(message)s", static_fields=static))
    logger = logging.getLogger("bench")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return lambda number: logger.info("request", extra=_fields(number))


def _loguru() -> Callable[[int], None]:
    from loguru import logger

    logger.remove()
    logger.add(sys.stdout, serialize=True)
    bound = logger.bind(service="bench", env="development")
    return lambda number: bound.bind(**_fields(number)).info("request")


WRITERS: Final[dict[str, Callable[[], Callable[[int], None]]]] = {
    OURS: _ours,
    "structlog with orjson": _structlog,
    "python-json-logger": _python_json_logger,
    "loguru": _loguru,
    _IDLE: _ours,
}

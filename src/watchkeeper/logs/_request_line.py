"""The line of a request, the one that is written most: from a struct straight into the sink.

What is the same in every line is encoded once, the time's second once a second; msgspec encodes the rest.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from watchkeeper.logs._clock import calendar

_encode: Final = msgspec.json.Encoder().encode
_MILLISECONDS: Final = tuple(f".{number:03d}Z".encode() for number in range(1000))


class RequestFields(msgspec.Struct, gc=False):
    """What differs between request lines, in the order of the line's keys."""

    method: str
    url: str
    statusCode: int  # noqa: N815 - the contract's key
    duration: float
    requestId: str  # noqa: N815 - the contract's key
    route: str
    outcome: str
    trace_id: str
    span_id: str
    bytes: int


class RequestLines:
    """Encodes the request lines of one service.

    Args:
        service: The `service` of each line.
        env: The `env` of each line.
    """

    def __init__(self, service: str, env: str) -> None:
        constant = _encode({"service": service, "env": env, "type": "request"})
        self._middle = b'",' + constant[1:-1] + b","
        self._start = (-1, b"")

    def encode(self, fields: RequestFields) -> bytes:
        """Return the line, its newline included.

        Raises:
            UnicodeEncodeError: A text holds a lone surrogate.
        """
        now = time.time()
        second = int(now)
        known = self._start
        if known[0] != second:
            known = self._start = (second, b'{"level":"info","time":"' + calendar(second).encode())
        return b"".join(
            (known[1], _MILLISECONDS[int((now - second) * 1000)], self._middle, _encode(fields)[1:], b"\n")
        )

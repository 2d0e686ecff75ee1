"""The line of a request, the one that is written most: from a struct straight into the sink."""

from __future__ import annotations

from typing import Final

import msgspec

encode_line: Final = msgspec.json.Encoder().encode_lines


class RequestLine(msgspec.Struct, gc=False):
    """A request line; the order of the fields is the order of its keys."""

    level: str
    time: str
    service: str
    env: str
    type: str
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

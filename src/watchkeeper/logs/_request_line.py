"""The line of a request, the one that is written most: one struct, encoded at once.

What is the same in every line is encoded once, with the time once a millisecond; msgspec encodes the rest.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from watchkeeper.logs._clock import calendar

encode_lines: Final = msgspec.json.Encoder().encode_lines
"""Returns lines of JSON, their newlines included; UnicodeEncodeError where a text holds a lone surrogate."""


SampleRate: TypeAlias = float | msgspec.UnsetType

UNSAMPLED: Final = msgspec.UNSET
"""Rate of a line that stands for itself alone."""

EndedRequest: TypeAlias = tuple[str, str, int, float, str, str, str, str, str, int, SampleRate]
"""What `RequestFields` takes after the level; its duration is finite."""


class RequestFields(msgspec.Struct, gc=False):
    """What a request line holds, in the order of its keys; what is not set is left out."""

    level: msgspec.Raw
    """Raw stands in the line as it is: this is the level and all that follows it, up to the type."""
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
    sampleRate: SampleRate = UNSAMPLED  # noqa: N815 - a key beside the contract's


class RequestHead:
    """Makes what the request lines of one service begin with.

    Args:
        service: The `service` of each line.
        env: The `env` of each line.
    """

    def __init__(self, service: str, env: str) -> None:
        constant = encode_lines([{"service": service, "env": env, "type": "request"}])
        self._rest = constant[1:-2]
        self._known = (-1, msgspec.Raw(b""))
        self._second = (-1, b"")

    def at(self, millisecond: int) -> msgspec.Raw:
        """Return the value of a line's first key, with the keys up to its type behind it.

        Args:
            millisecond: Since the epoch.
        """
        last = self._known  # once: another thread may put another one there
        if last[0] == millisecond:
            return last[1]
        second, part = divmod(millisecond, 1000)
        known = self._second
        if known[0] != second:
            known = self._second = (second, b'"info","time":"' + calendar(second).encode())
        head = msgspec.Raw(b'%b.%03dZ",%b' % (known[1], part, self._rest))
        self._known = millisecond, head
        return head

"""Rendering of fields of any type as one line of strict JSON."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from watchkeeper.logs._clock import timestamp
from watchkeeper.logs._context import current_request
from watchkeeper.logs._serialize import Limits, Serializer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from watchkeeper.logs.redaction._redactor import Redactor

MAX_LINE: Final = 32 * 1024
"""The longest line in bytes, newline included: half of a pipe's default capacity."""

_LIMITS: Final = (
    Limits(),
    Limits(text=1024, items=32, depth=6, total=4096),
    Limits(text=128, items=8, total=512),
)
"""Tried in turn until the line is short enough."""

# In UTF-8: DEL, C1 controls, zero-width characters, line separators and direction marks (Unicode TR 36). JSON
# allows them unescaped, but a terminal acts on them.
_UNSAFE: Final = re.compile(
    rb"\x7f|\xc2[\x80-\x9f\xad]|\xd8\x9c|\xe2\x80[\x8b-\x8f\xa8-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf"
    rb"|\xef\xbf[\xb9-\xbb]|\xf3\xa0[\x80\x81][\x80-\xbf]"
)
_encode: Final = msgspec.json.Encoder().encode


class Renderer:
    """Renders the lines of one service."""

    def __init__(self, service: str, env: str, redactor: Redactor) -> None:
        self.service = service
        self.env = env
        self._redactor = redactor

    def line(self, level: str, fields: Mapping[str, object]) -> bytes:
        """Return the line of an event: level, time, service, env, its fields, then the request's ids."""
        start: dict[str, Any] = {
            "level": level,
            "time": timestamp(),
            "service": self.service,
            "env": self.env,
        }
        for limits in _LIMITS:
            line = self._try(dict(start), fields, limits)
            if line is not None and len(line) <= MAX_LINE:
                return line
        start["msg"] = "A line was left out: it is too long, or cannot be encoded"
        start["fields"] = len(fields)
        return _encode(start) + b"\n"

    def _try(self, record: dict[str, Any], fields: Mapping[str, object], limits: Limits) -> bytes | None:
        try:
            self._fill(record, fields, limits)
            return _escape_unsafe(_encode(record)) + b"\n"
        except (TypeError, ValueError, OverflowError, RecursionError):  # UnicodeEncodeError is a ValueError
            return None

    def _fill(self, record: dict[str, Any], fields: Mapping[str, object], limits: Limits) -> None:
        serializer = Serializer(self._redactor, limits)
        for key, value in fields.items():
            name, plain = serializer.serialize_pair(key, value)
            while name in record:
                name += "_"
            record[name] = plain
        request = current_request()
        if request is not None:
            record.setdefault("requestId", self._redactor.text(request.request_id))
            if request.trace_id:
                record.setdefault("trace_id", request.trace_id)
                record.setdefault("span_id", request.span_id)


def _escape_unsafe(line: bytes) -> bytes:
    if line.isascii() and b"\x7f" not in line:
        return line
    return _UNSAFE.sub(_escape, line)


def _escape(found: re.Match[bytes]) -> bytes:
    units = found[0].decode().encode("utf-16-be").hex()
    return b"".join(b"\\u" + units[at : at + 4].encode() for at in range(0, len(units), 4))

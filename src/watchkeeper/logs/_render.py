"""From fields to one line of strict JSON, whatever the fields hold."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from watchkeeper.logs._clock import timestamp
from watchkeeper.logs._context import current_request
from watchkeeper.logs._plain import Limits, Shaper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from watchkeeper.logs.redaction._redactor import Redactor

MAX_LINE: Final = 32 * 1024
"""The longest line in bytes, newline included: half of what a pipe holds by default."""

_CANONICAL: Final = frozenset(("level", "time", "service", "env"))
_TIGHTER: Final = (
    Limits(),
    Limits(text=1024, items=32, depth=6, total=4096),
    Limits(text=128, items=8, total=512),
)

# Control characters that JSON allows raw, and characters that change how a terminal shows what is around
# them: DEL, C1, zero width, line separators, direction marks (Unicode TR 36), as UTF-8.
_UNSAFE: Final = re.compile(
    rb"\x7f|\xc2[\x80-\x9f\xad]|\xd8\x9c|\xe2\x80[\x8b-\x8f\xa8-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf"
    rb"|\xef\xbf[\xb9-\xbb]|\xf3\xa0[\x80\x81][\x80-\xbf]"
)
_encode: Final = msgspec.json.Encoder().encode


def _escape(found: re.Match[bytes]) -> bytes:
    units = found[0].decode().encode("utf-16-be").hex()
    return b"".join(b"\\u" + units[at : at + 4].encode() for at in range(0, len(units), 4))


def neutralise(line: bytes) -> bytes:
    """Return a line of JSON with every character escaped that a terminal or a reader might act on."""
    if line.isascii() and b"\x7f" not in line:
        return line
    return _UNSAFE.sub(_escape, line)


class Renderer:
    """Renders lines of one service.

    Args:
        service: The `service` of each line.
        env: The `env` of each line.
        redactor: What masks secrets.
    """

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
        for limits in _TIGHTER:
            line = self._try(dict(start), fields, limits)
            if line is not None and len(line) <= MAX_LINE:
                return line
        start["msg"] = "A line was left out: it is too long, or cannot be encoded"
        start["fields"] = len(fields)
        return _encode(start) + b"\n"

    def _try(self, record: dict[str, Any], fields: Mapping[str, object], limits: Limits) -> bytes | None:
        try:
            self._fill(record, fields, limits)
            return neutralise(_encode(record)) + b"\n"
        except (TypeError, ValueError, OverflowError, RecursionError):
            return None  # UnicodeEncodeError is a ValueError

    def _fill(self, record: dict[str, Any], fields: Mapping[str, object], limits: Limits) -> None:
        shaper = Shaper(self._redactor, limits)
        for key, value in fields.items():
            name, plain = shaper.pair(key, value)
            while name in record:
                name += "_"
            record[name] = plain
        request = current_request()
        if request is not None:
            record.setdefault("requestId", self._redactor.text(request.request_id))
            if request.trace_id:
                record.setdefault("trace_id", request.trace_id)
                record.setdefault("span_id", request.span_id)

"""The ids of a request: read from its headers if they are valid, otherwise generated."""

from __future__ import annotations

import os
import random
import re
from typing import TYPE_CHECKING, Final

from watchkeeper.logs import RequestContext

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Headers

# https://www.w3.org/TR/trace-context/#traceparent-header; only versions after 00 may carry more fields.
_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE: Final = re.compile(rb"[\x20-\x7e\t]{1,512}")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_WANTED: Final = frozenset((b"x-request-id", b"traceparent", b"tracestate"))
# The shape of a version 00 traceparent after _TO_SHAPE: hex digits become 0, others but dashes NUL.
_SHAPE: Final = b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00"
_TO_SHAPE: Final = bytes(
    byte if byte == ord("-") else ord("0") if byte in b"0123456789abcdef" else 0 for byte in range(256)
)
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
# Bit 0 is "sampled", bit 1 is "random" (level 2); the others are not defined yet and are cleared.
_KEPT_FLAGS: Final = {f"{flags:02x}": f"{flags & 0b11:02x}" for flags in range(256)}
_BATCH: Final = 64

# Ids are not secrets, but must differ after a fork and where a service seeds the shared generator.
_random: Final = random.Random()  # noqa: S311 - see above
# Ids are generated in batches. A request takes a pair with pop, which is atomic.
_generated: Final[list[tuple[str, str]]] = []
_take: Final = _generated.pop


def _reset() -> None:
    _random.seed()
    _generated.clear()


os.register_at_fork(after_in_child=_reset)


def read_ids(headers: Headers) -> RequestContext:
    """Return the ids in a request's headers; what is missing, malformed or sent twice is generated."""
    try:
        trace_id, span_id = _take()
    except IndexError:
        trace_id, span_id = _generate()
    # C loops and few regular expressions: with the cold caches of production Python loops and patterns cost
    # more than a benchmark shows.
    named = dict(headers)
    parent = named.get(b"traceparent")
    sent_id = named.get(b"x-request-id")
    if parent is None and sent_id is None:
        return RequestContext(trace_id, trace_id, span_id)
    if len(named) != len([*headers]) or b"tracestate" in named:
        return _read_checked(headers, trace_id, span_id)
    request_id = trace_id
    if sent_id is not None and _REQUEST_ID.fullmatch(sent_id):
        request_id = sent_id.decode("ascii")
    if parent is None:
        return RequestContext(request_id, trace_id, span_id)
    if parent.translate(_TO_SHAPE) != _SHAPE or not parent.startswith(b"00-"):
        return _read_checked(headers, trace_id, span_id)
    sent = parent.decode("ascii")
    parent_trace = sent[3:35]
    if parent_trace == _NO_TRACE or sent[36:52] == _NO_SPAN:
        return RequestContext(request_id, trace_id, span_id)
    return RequestContext(request_id, parent_trace, span_id, _KEPT_FLAGS[sent[53:]])


def _generate() -> tuple[str, str]:
    digits = _random.randbytes(24 * _BATCH).hex()
    pairs = [(digits[at : at + 32], digits[at + 32 : at + 48]) for at in range(0, len(digits), 48)]
    _generated.extend(pairs[1:])
    return pairs[0]


def _read_checked(headers: Headers, new_trace: str, span_id: str) -> RequestContext:
    """Read the ids with all checks: the slow path."""
    given = [header for header in headers if header[0] in _WANTED]
    request_id = new_trace
    sent_ids = [value for name, value in given if name == b"x-request-id"]
    if len(sent_ids) == 1 and _REQUEST_ID.fullmatch(sent_ids[0]):
        request_id = sent_ids[0].decode("ascii")
    parents = [value for name, value in given if name == b"traceparent"]
    parent = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if parent is None or not _is_valid(parent):
        return RequestContext(request_id, new_trace, span_id)
    state = b",".join([value for name, value in given if name == b"tracestate"])
    return RequestContext(
        request_id,
        parent[2].decode("ascii"),
        span_id,
        _KEPT_FLAGS[parent[4].decode("ascii")],
        state.decode("ascii") if _TRACESTATE.fullmatch(state) else "",
    )


def _is_valid(parent: re.Match[bytes]) -> bool:
    version, trace_id, span_id, _, more = parent.groups()
    return (
        version != b"ff"
        and trace_id != _NO_TRACE.encode()
        and span_id != _NO_SPAN.encode()
        and (more is None or version != b"00")
    )

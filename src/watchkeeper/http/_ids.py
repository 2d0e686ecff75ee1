"""The ids of a request: taken from its headers where they are valid, made where they are not."""

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
# A traceparent of version 00 has this shape once each digit is a 0 and all but digits and dashes is not.
_SHAPE: Final = b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00"
_TO_SHAPE: Final = bytes(
    byte if byte == ord("-") else ord("0") if byte in b"0123456789abcdef" else 0 for byte in range(256)
)
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
# The first bit says sampled, the second is level 2's random; nobody knows yet what the others will say.
_KEPT_FLAGS: Final = {f"{flags:02x}": f"{flags & 0b11:02x}" for flags in range(256)}
_SHEET: Final = 64

# Ids are no secrets: they need to differ, also after a fork and where a service seeds the shared generator.
_random: Final = random.Random()  # noqa: S311 - see above
# Made by the sheet: what a request takes is a pop, which no thread can do twice.
_made: Final[list[tuple[str, str]]] = []
_take: Final = _made.pop


def _begin_anew() -> None:
    _random.seed()
    _made.clear()


os.register_at_fork(after_in_child=_begin_anew)


def read_ids(headers: Headers) -> RequestContext:
    """Return the ids that a request goes by.

    A valid `X-Request-ID` and `traceparent` are kept; one that is malformed or there twice is no better than
    none. A request id that was made is the trace id, the very same object.

    Args:
        headers: Of the ASGI scope, names in lower case; read more than once.
    """
    try:
        trace_id, span_id = _take()
    except IndexError:
        trace_id, span_id = _make()
    # Loops in C and few patterns: the hot caches of a test show little of what those cost.
    named = dict(headers)
    parent = named.get(b"traceparent")
    sent_id = named.get(b"x-request-id")
    if parent is None and sent_id is None:
        return RequestContext(trace_id, trace_id, span_id)
    if len(named) != len([*headers]) or b"tracestate" in named:
        return _keep_valid(headers, trace_id, span_id)
    request_id = trace_id
    if sent_id is not None and _REQUEST_ID.fullmatch(sent_id):
        request_id = sent_id.decode("ascii")
    if parent is None:
        return RequestContext(request_id, trace_id, span_id)
    if parent.translate(_TO_SHAPE) != _SHAPE or not parent.startswith(b"00-"):
        return _keep_valid(headers, trace_id, span_id)
    sent = parent.decode("ascii")
    parent_trace = sent[3:35]
    if parent_trace == _NO_TRACE or sent[36:52] == _NO_SPAN:
        return RequestContext(request_id, trace_id, span_id)
    return RequestContext(request_id, parent_trace, span_id, _KEPT_FLAGS[sent[53:]])


def _make() -> tuple[str, str]:
    sheet = _random.randbytes(24 * _SHEET).hex()
    made = [(sheet[at : at + 32], sheet[at + 32 : at + 48]) for at in range(0, len(sheet), 48)]
    _made.extend(made[1:])
    return made[0]


def _keep_valid(headers: Headers, made_trace: str, span_id: str) -> RequestContext:
    given = [header for header in headers if header[0] in _WANTED]
    request_id = made_trace
    sent_ids = [value for name, value in given if name == b"x-request-id"]
    if len(sent_ids) == 1 and _REQUEST_ID.fullmatch(sent_ids[0]):
        request_id = sent_ids[0].decode("ascii")
    parents = [value for name, value in given if name == b"traceparent"]
    parent = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if parent is None or not _is_valid(parent):
        return RequestContext(request_id, made_trace, span_id)
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

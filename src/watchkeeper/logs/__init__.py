"""One JSON line at a time: where it goes, what it holds, and what it must not show."""

from watchkeeper.logs._context import (
    RequestContext,
    bind_request,
    current_request,
    trace_headers,
    unbind_request,
)
from watchkeeper.logs._errors import claim_exception, describe_exception
from watchkeeper.logs._levels import LEVELS, parse_level
from watchkeeper.logs._logging import Logging, line_handler
from watchkeeper.logs._render import MAX_LINE
from watchkeeper.logs._request_line import UNSAMPLED, RequestLine, SampleRate
from watchkeeper.logs._threads import carry_context_into_threads, stop_carrying_context_into_threads
from watchkeeper.logs.output._sink import DROP_REASONS, Sink
from watchkeeper.logs.redaction._redactor import DEFAULT_KEYS, Redactor

__all__ = [
    "DEFAULT_KEYS",
    "DROP_REASONS",
    "LEVELS",
    "MAX_LINE",
    "UNSAMPLED",
    "Logging",
    "Redactor",
    "RequestContext",
    "RequestLine",
    "SampleRate",
    "Sink",
    "bind_request",
    "carry_context_into_threads",
    "claim_exception",
    "current_request",
    "describe_exception",
    "line_handler",
    "parse_level",
    "stop_carrying_context_into_threads",
    "trace_headers",
    "unbind_request",
]

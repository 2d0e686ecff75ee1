"""JSON log lines: rendering, redaction, output, and bridges to structlog and the standard library."""

from watchkeeper.logs._context import RequestContext, current_request, trace_headers
from watchkeeper.logs._logging import line_handler
from watchkeeper.logs._threads import propagate_context_to_threads
from watchkeeper.logs.redaction._redactor import Redactor

__all__ = [
    "Redactor",
    "RequestContext",
    "current_request",
    "line_handler",
    "propagate_context_to_threads",
    "trace_headers",
]

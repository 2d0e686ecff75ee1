"""Exceptions as bounded data, and the record of which ones have been logged."""

from __future__ import annotations

import contextlib
import linecache
import time
from collections import deque
from itertools import islice
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs._context import current_request

if TYPE_CHECKING:
    from types import FrameType, TracebackType

_MAX_FRAMES: Final = 40
_OUTERMOST: Final = 8  # how many of these frames are the outermost ones of a longer stack
_MAX_WALKED: Final = 100_000
_MAX_CAUSES: Final = 8
_MAX_MEMBERS: Final = 8
_MAX_GROUP_DEPTH: Final = 4
_MAX_EXCEPTIONS: Final = 32  # in one description
_MAX_NOTES: Final = 8
_MAX_CODE: Final = 400

_CLAIMS: Final = "__watchkeeper_logged__"
_MAX_CLAIMS: Final = 16
_RECENT_S: Final = 2.0
_recent: Final[deque[tuple[float, str]]] = deque(maxlen=32)
"""When the latest exceptions were claimed, and the last line of their tracebacks."""


def describe_exception(exc: BaseException) -> dict[str, Any]:
    """Return `type`, `message`, `stack` (outermost first), and any `notes`, `exceptions` and `causes`."""
    return _describe(exc, set(), 0)


def _describe(exc: BaseException, seen: set[int], depth: int) -> dict[str, Any]:
    described = _describe_one(exc, seen)
    if isinstance(exc, BaseExceptionGroup) and depth < _MAX_GROUP_DEPTH:
        described["exceptions"] = [
            _describe(member, seen, depth + 1)
            for member in exc.exceptions[:_MAX_MEMBERS]
            if id(member) not in seen and len(seen) < _MAX_EXCEPTIONS
        ]
    causes: list[dict[str, Any]] = []
    cause = _cause_of(exc)
    while cause is not None and id(cause) not in seen:
        if len(causes) == _MAX_CAUSES or len(seen) >= _MAX_EXCEPTIONS:
            break
        causes.append(_describe_one(cause, seen))
        cause = _cause_of(cause)
    if causes:
        described["causes"] = causes
    return described


def _cause_of(exc: BaseException) -> BaseException | None:
    if exc.__cause__ is not None:
        return exc.__cause__
    return None if exc.__suppress_context__ else exc.__context__


def _describe_one(exc: BaseException, seen: set[int]) -> dict[str, Any]:
    seen.add(id(exc))
    described: dict[str, Any] = {
        "type": _type_name(type(exc)),
        "message": _text(exc.message if isinstance(exc, BaseExceptionGroup) else exc),
        "stack": _describe_stack(exc.__traceback__),
    }
    notes = getattr(exc, "__notes__", None)
    if isinstance(notes, list) and notes:
        described["notes"] = [_text(note) for note in notes[:_MAX_NOTES]]
    return described


def _type_name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may raise anything
        return f"<unprintable {type(value).__name__}>"


def _describe_stack(traceback: TracebackType | None) -> list[dict[str, Any]]:
    frames = list(islice(walk_tb(traceback), _MAX_WALKED))
    if len(frames) <= _MAX_FRAMES:
        return [_describe_frame(frame, line) for frame, line in frames]
    outermost = [_describe_frame(frame, line) for frame, line in frames[:_OUTERMOST]]
    innermost = [_describe_frame(frame, line) for frame, line in frames[_OUTERMOST - _MAX_FRAMES :]]
    return [*outermost, {"omitted": len(frames) - _MAX_FRAMES}, *innermost]


def _describe_frame(frame: FrameType, line: int | None) -> dict[str, Any]:
    code = frame.f_code
    described: dict[str, Any] = {"file": code.co_filename, "line": line or 0, "function": code.co_qualname}
    source = linecache.getline(code.co_filename, line or 0, frame.f_globals).strip()
    if 0 < len(source) <= _MAX_CODE:  # never cut: half of a secret would not be recognised
        described["code"] = source
    return described


def claim_exception(exc: BaseException) -> bool:
    """Return whether `exc` must still be logged for this request, and mark it as logged.

    The mark names the request, because several requests may raise one instance (a shared future).
    """
    request = current_request()
    request_id = request.request_id if request is not None else None
    try:
        claims: list[str | None] = exc.__dict__.setdefault(_CLAIMS, [])
    except Exception:  # noqa: BLE001 - a class may forbid attributes; logged twice is better than never
        return True
    if request_id in claims or (request_id is None and claims):
        return False
    claims.append(request_id)
    del claims[:-_MAX_CLAIMS]
    _recent.append((time.monotonic(), _last_line(exc)))
    return True


def was_just_claimed(traceback: str) -> bool:
    """Return, once, whether this traceback's exception was claimed: granian reports it as text only."""
    last = traceback.rstrip().rpartition("\n")[2].strip()
    now = time.monotonic()
    for claim in list(_recent):
        if last.startswith(claim[1]) and now - claim[0] < _RECENT_S:
            with contextlib.suppress(ValueError):  # another thread removed it
                _recent.remove(claim)
            return True
    return False


def _last_line(exc: BaseException) -> str:
    # Not traceback.format_exception_only(): it may search whole namespaces for "Did you mean".
    return f"{_type_name(type(exc))}: {_text(exc)}".rstrip(": \n").rpartition("\n")[2].strip()

"""An exception as data: type, message and frames, bounded, with what caused it; and who may log it."""

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

_FRAMES: Final = 40
_OUTER: Final = 8  # of these frames, how many of the outermost are kept of a longer stack
_CAUSES: Final = 8
_GROUP: Final = 8
_DEPTH: Final = 4
_TOGETHER: Final = 32  # exceptions in one description
_NOTES: Final = 8
_CODE: Final = 400
_MARK: Final = "__watchkeeper_logged__"
_MARKS: Final = 16
_JUST: Final = 2.0
# When the exceptions claimed last were, and how a traceback of theirs ends.
_recent: Final[deque[tuple[float, str]]] = deque(maxlen=32)


def describe_exception(exc: BaseException) -> dict[str, Any]:
    """Return `exc` as data, bounded.

    Returns:
        `type`, `message` and `stack` (outermost frame first), then what there is of `notes`, `exceptions` (of
        a group) and `causes` (the direct cause first). Secrets are still in it: a line masks them when it is
        written, anything else is to pass it through `Redactor.value`.
    """
    return _describe(exc, set(), 0)


def _describe(exc: BaseException, seen: set[int], depth: int) -> dict[str, Any]:
    described = _alone(exc, seen)
    if isinstance(exc, BaseExceptionGroup) and depth < _DEPTH:
        described["exceptions"] = [
            _describe(member, seen, depth + 1)
            for member in exc.exceptions[:_GROUP]
            if id(member) not in seen and len(seen) < _TOGETHER
        ]
    causes: list[dict[str, Any]] = []
    cause = _cause_of(exc)
    while cause is not None and id(cause) not in seen and len(causes) < _CAUSES and len(seen) < _TOGETHER:
        causes.append(_alone(cause, seen))
        cause = _cause_of(cause)
    if causes:
        described["causes"] = causes
    return described


def _cause_of(exc: BaseException) -> BaseException | None:
    if exc.__cause__ is not None:
        return exc.__cause__
    return None if exc.__suppress_context__ else exc.__context__


def _alone(exc: BaseException, seen: set[int]) -> dict[str, Any]:
    seen.add(id(exc))
    described: dict[str, Any] = {
        "type": _type_name(type(exc)),
        "message": _text(exc.message if isinstance(exc, BaseExceptionGroup) else exc),
        "stack": _stack(exc.__traceback__),
    }
    notes = getattr(exc, "__notes__", None)
    if isinstance(notes, list) and notes:
        described["notes"] = [_text(note) for note in notes[:_NOTES]]
    return described


def _type_name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may raise anything
        return f"<unprintable {type(value).__name__}>"


def _stack(traceback: TracebackType | None) -> list[dict[str, Any]]:
    frames = [(frame, line) for frame, line in islice(walk_tb(traceback), 100_000)]
    if len(frames) <= _FRAMES:
        return [_frame(frame, line) for frame, line in frames]
    kept = [_frame(frame, line) for frame, line in frames[:_OUTER]]
    kept.append({"omitted": len(frames) - _FRAMES})
    return kept + [_frame(frame, line) for frame, line in frames[_OUTER - _FRAMES :]]


def _frame(frame: FrameType, line: int | None) -> dict[str, Any]:
    code = frame.f_code
    described: dict[str, Any] = {"file": code.co_filename, "line": line or 0, "function": code.co_qualname}
    source = linecache.getline(code.co_filename, line or 0, frame.f_globals).strip()
    if 0 < len(source) <= _CODE:  # never a part: half a secret would not be recognised
        described["code"] = source
    return described


def claim_exception(exc: BaseException) -> bool:
    """Say whether `exc` is still to be logged for the request being served now, and note that it is.

    An exception belongs to whoever logs it first: it is not logged again on its way up. The note is kept in
    the exception, by request, because one instance may be raised in several requests (a shared future).
    """
    request = current_request()
    here = request.request_id if request is not None else None
    try:
        logged: list[str | None] = exc.__dict__.setdefault(_MARK, [])
    except Exception:  # noqa: BLE001 - a class may do anything with its attributes; twice is better than not
        return True
    if here in logged or (here is None and logged):
        return False
    logged.append(here)
    del logged[:-_MARKS]
    _recent.append((time.monotonic(), _last_line(exc)))
    return True


def was_just_claimed(traceback: str) -> bool:
    """Say whether an exception that somebody printed as text was claimed just before; asked once each.

    granian reports an exception of the app from Rust, as text only.
    """
    last = traceback.rstrip().rpartition("\n")[2].strip()
    now = time.monotonic()
    for claim in list(_recent):
        if last.startswith(claim[1]) and now - claim[0] < _JUST:
            with contextlib.suppress(ValueError):
                _recent.remove(claim)
            return True
    return False


def _last_line(exc: BaseException) -> str:
    # Not traceback.format_exception_only(): it may search whole namespaces for "Did you mean".
    return f"{_type_name(type(exc))}: {_text(exc)}".rstrip(": \n").rpartition("\n")[2].strip()

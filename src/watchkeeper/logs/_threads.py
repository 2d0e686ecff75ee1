"""Copying the context of a request into threads, which Python does not do by default."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

_MARK: Final = "__watchkeeper_context__"
_lock: Final = threading.Lock()


def propagate_context_to_threads() -> None:
    """Run every `Thread` and every job of a `ThreadPoolExecutor` in a copy of its caller's context.

    Their lines then have the ids of the request. `asyncio.to_thread` and anyio do this by themselves: call it
    only if the service starts threads, submits to a pool or uses `loop.run_in_executor`. It patches
    `Thread.start` and `ThreadPoolExecutor.submit` for the rest of the process.
    """
    with _lock:
        if not hasattr(threading.Thread.start, _MARK):
            threading.Thread.start = _start_in_context(threading.Thread.start)  # type: ignore[assignment, method-assign]
        if not hasattr(ThreadPoolExecutor.submit, _MARK):
            ThreadPoolExecutor.submit = _submit_in_context(ThreadPoolExecutor.submit)  # type: ignore[method-assign]


def _start_in_context(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    @wraps(original)
    def start(self: threading.Thread) -> None:
        if not self.ident and not _has_context(self):
            _wrap_run(self, copy_context())
        original(self)

    setattr(start, _MARK, True)
    return start


def _has_context(thread: threading.Thread) -> bool:
    # Since 3.14 a thread can be given a context, and -X thread_inherit_context copies the caller's.
    return (
        bool(getattr(sys.flags, "thread_inherit_context", 0)) or getattr(thread, "_context", None) is not None
    )


def _wrap_run(thread: threading.Thread, context: Context) -> None:
    own = thread.__dict__.get("run")
    run = thread.run

    def run_in_context() -> None:
        # The thread object may outlive its work, and must not keep the context alive.
        if own is None:
            del thread.run
        else:
            thread.run = own  # type: ignore[method-assign]
        context.run(run)

    thread.run = run_in_context  # type: ignore[method-assign]


def _submit_in_context(original: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
    @wraps(original)
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if _pickles_jobs(self):
            return original(self, fn, *args, **kwargs)
        # This call may start a worker thread, which outlives the request: it gets an empty context.
        return Context().run(original, self, copy_context().run, fn, *args, **kwargs)

    setattr(submit, _MARK, True)
    return submit


def _pickles_jobs(pool: ThreadPoolExecutor) -> bool:
    # The InterpreterPoolExecutor of 3.14 is a ThreadPoolExecutor too, but a context cannot be pickled.
    module = sys.modules.get("concurrent.futures.interpreter")
    return module is not None and isinstance(pool, module.InterpreterPoolExecutor)

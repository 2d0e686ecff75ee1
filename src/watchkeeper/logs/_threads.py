"""Carrying the request's context into threads, which Python does not do by itself before 3.14."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_lock: Final = threading.Lock()
_users = 0
_start: Callable[[threading.Thread], None] = threading.Thread.start
_submit: Callable[..., Future[Any]] = ThreadPoolExecutor.submit


def carry_context_into_threads() -> None:
    """Let every `Thread` and every job of a `ThreadPoolExecutor` run in a copy of its caller's context.

    `loop.run_in_executor` is a job of such an executor. Nests: what undoes the first call undoes it.
    """
    global _users, _start, _submit  # noqa: PLW0603 - what is patched is global too
    with _lock:
        _users += 1
        if _users == 1:
            _start = threading.Thread.start
            _submit = ThreadPoolExecutor.submit
            threading.Thread.start = _start_in_context  # type: ignore[method-assign]
            ThreadPoolExecutor.submit = _submit_in_context  # type: ignore[method-assign,assignment]


def stop_carrying_context_into_threads() -> None:
    """Undo one call of `carry_context_into_threads`."""
    global _users  # noqa: PLW0603 - see above
    with _lock:
        if _users == 0:
            return
        _users -= 1
        if _users:
            return
        # Somebody else's patch on top of ours stays; ours below it then only passes calls on.
        if threading.Thread.start is _start_in_context:
            threading.Thread.start = _start  # type: ignore[method-assign,assignment]
        if ThreadPoolExecutor.submit is _submit_in_context:
            ThreadPoolExecutor.submit = _submit  # type: ignore[method-assign]


def _inherits(thread: threading.Thread) -> bool:
    # 3.14: a thread may be given a context, and always has one where the interpreter inherits them.
    return (
        bool(getattr(sys.flags, "thread_inherit_context", 0)) or getattr(thread, "_context", None) is not None
    )


def _start_in_context(self: threading.Thread) -> None:
    if _users and not self.ident and not _inherits(self):
        _wrap_run(self, copy_context())
    _start(self)


def _wrap_run(thread: threading.Thread, context: Context) -> None:
    own = thread.__dict__.get("run")
    run = thread.run

    def run_in_context() -> None:
        # The thread object may outlive its work: it must not hold on to the context.
        if own is None:
            del thread.run
        else:
            thread.run = own  # type: ignore[method-assign]
        context.run(run)

    thread.run = run_in_context  # type: ignore[method-assign]


def _submit_in_context(
    self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Future[Any]:
    if not _users or _sends_to_interpreter(self):
        return _submit(self, fn, *args, **kwargs)
    # The pool may start a worker thread here, which outlives the request: it starts in an empty context.
    return Context().run(_submit, self, copy_context().run, fn, *args, **kwargs)


def _sends_to_interpreter(pool: ThreadPoolExecutor) -> bool:
    # 3.14's InterpreterPoolExecutor is a subclass that pickles its jobs; a context cannot be pickled.
    module = sys.modules.get("concurrent.futures.interpreter")
    return module is not None and isinstance(pool, module.InterpreterPoolExecutor)

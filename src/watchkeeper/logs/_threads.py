"""Carrying the request's context into threads, which Python does not do by itself before 3.14."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable

_lock: Final = threading.Lock()
_users = 0


class _Patch:
    """A method of a class replaced by ours, which calls `original`; undone unless somebody built on it."""

    def __init__(self, owner: type, name: str, ours: Callable[..., Any]) -> None:
        self._owner = owner
        self._name = name
        self._ours = ours
        self._buried = False
        self.original: Callable[..., Any] = getattr(owner, name)

    def apply(self) -> None:
        current = getattr(self._owner, self._name)
        # Under another's patch ours is still called; on top of that one it would call itself for ever.
        if not (self._buried and current is not self.original):
            self.original = current
            setattr(self._owner, self._name, self._ours)

    def undo(self) -> None:
        # Another's patch on top of ours stays; ours below it then only passes calls on.
        self._buried = getattr(self._owner, self._name) is not self._ours
        if not self._buried:
            setattr(self._owner, self._name, self.original)


def carry_context_into_threads() -> None:
    """Let every `Thread` and every job of a `ThreadPoolExecutor` run in a copy of its caller's context.

    `loop.run_in_executor` is a job of such an executor. Nests: what undoes the first call undoes it.
    """
    global _users  # noqa: PLW0603 - what is patched is global too
    with _lock:
        _users += 1
        if _users == 1:
            _thread_start.apply()
            _pool_submit.apply()


def stop_carrying_context_into_threads() -> None:
    """Undo one call of `carry_context_into_threads`."""
    global _users  # noqa: PLW0603 - see above
    with _lock:
        if _users == 1:
            _thread_start.undo()
            _pool_submit.undo()
        _users = max(0, _users - 1)


def _inherits(thread: threading.Thread) -> bool:
    # 3.14: a thread may be given a context, and always has one where the interpreter inherits them.
    return (
        bool(getattr(sys.flags, "thread_inherit_context", 0)) or getattr(thread, "_context", None) is not None
    )


def _start_in_context(self: threading.Thread) -> None:
    if _users and not self.ident and not _inherits(self):
        _wrap_run(self, copy_context())
    _thread_start.original(self)


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
    submit = _pool_submit.original
    if not _users or _sends_to_interpreter(self):
        return cast("Future[Any]", submit(self, fn, *args, **kwargs))
    # The pool may start a worker thread here, which outlives the request: it starts in an empty context.
    return cast("Future[Any]", Context().run(submit, self, copy_context().run, fn, *args, **kwargs))


def _sends_to_interpreter(pool: ThreadPoolExecutor) -> bool:
    # 3.14's InterpreterPoolExecutor is a subclass that pickles its jobs; a context cannot be pickled.
    module = sys.modules.get("concurrent.futures.interpreter")
    return module is not None and isinstance(pool, module.InterpreterPoolExecutor)


_thread_start: Final = _Patch(threading.Thread, "start", _start_in_context)
_pool_submit: Final = _Patch(ThreadPoolExecutor, "submit", _submit_in_context)

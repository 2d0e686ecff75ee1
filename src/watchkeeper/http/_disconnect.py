"""Whether the client is still there, asked without waiting.

No server's `send` says that nobody listens any more: uvicorn's, gunicorn's and hypercorn's drop what is sent.
Their `receive` knows it. It is a coroutine, which can be taken one step: either it has a message at once, or
it would wait, and is closed again.
"""

from __future__ import annotations

import contextlib
import inspect
from asyncio import _get_running_loop
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Message, Receive, Scope


def can_be_asked(receive: Receive, scope: Scope) -> bool:
    """Say whether `receive` may be taken a step without harm.

    Args:
        receive: A server's is a bound coroutine method. What else there is may not be left half-way: a
            middleware's function can hold a task group, granian's awaitable and trio's coroutines are none of
            asyncio's.
        scope: Of the request; the first step of a client's `Expect: 100-continue` asks for its body.
    """
    return (
        inspect.ismethod(receive)
        and inspect.iscoroutinefunction(receive)
        and _get_running_loop() is not None
        and all(name != b"expect" for name, _ in scope["headers"])
    )


def receive_at_once(receive: Receive) -> Message | None:
    """Return the message that `receive` has already, or None where it would wait.

    Args:
        receive: One that `can_be_asked`.
    """
    step = receive()
    if not inspect.iscoroutine(step):
        return None
    try:
        step.send(None)
    except StopIteration as done:
        message: Message = done.value
        return message
    except Exception:  # noqa: BLE001 - whoever receives next hears of it
        return None
    with contextlib.suppress(RuntimeError):  # one that awaits something on its way out
        step.close()
    return None

"""Checks without waiting whether the client is still there.

No server's `send` reports that the client left; its `receive` does. That is a coroutine, which can be
advanced one step: it returns a message at once, or it would wait, and is closed again.
"""

from __future__ import annotations

import contextlib
import inspect
from asyncio import _get_running_loop
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchkeeper.http._asgi import Message, Receive, Scope


def can_poll(receive: Receive, scope: Scope) -> bool:
    """Return whether `receive` can be advanced one step without harm: it is a server's own bound method.

    A middleware's function can hold a task group; those of granian and trio are not asyncio's. With
    `Expect: 100-continue` the first step would ask the client for its body.
    """
    return (
        inspect.ismethod(receive)
        and inspect.iscoroutinefunction(receive)
        and _get_running_loop() is not None
        and all(name != b"expect" for name, _ in scope["headers"])
    )


def poll(receive: Receive) -> Message | None:
    """Return the message that `receive` already has, or None where it would wait; see `can_poll`."""
    step = receive()
    if not inspect.iscoroutine(step):
        return None
    try:
        step.send(None)
    except StopIteration as done:
        message: Message = done.value
        return message
    except Exception:  # noqa: BLE001 - the next real receive raises it again
        return None
    with contextlib.suppress(RuntimeError):  # raised by a coroutine that awaits while it is closed
        step.close()
    return None

"""What a tool is: a name, the arguments that it takes, and what it does in a transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import AsyncConnection


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a call gave.

    Args:
        value: The answer, as JSON.
        audit: What the audit entry says about it.
    """

    value: object
    audit: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """One tool.

    Args:
        name: Its name in the address, the metrics and the audit log.
        arguments: The struct that its arguments are read into, strictly.
        run: What it does, in the transaction of its audit entry; an ApiError of it rejects the call.
    """

    name: str
    arguments: type[Any]
    run: Callable[[AsyncConnection[Any], Any], Awaitable[Result]]

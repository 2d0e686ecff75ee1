"""The definition of a tool: its name, its arguments, and what it runs in a transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import AsyncConnection


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The result of a call: its value as JSON, and the payload of its audit entry."""

    value: object
    audit: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """One tool.

    Args:
        name: Its name in the URL, the metrics and the audit log.
        arguments: The struct that its arguments are decoded into, strictly.
        run: Runs it in the transaction of its audit entry; an ApiError rejects the call.
    """

    name: str
    arguments: type[Any]
    run: Callable[[AsyncConnection[Any], Any], Awaitable[Result]]

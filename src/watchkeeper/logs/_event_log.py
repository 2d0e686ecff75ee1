"""Writes events and exceptions as lines at or above a level to one sink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.logs._exceptions import claim_exception
from watchkeeper.logs._levels import ALIASES, LEVELS, parse_level

if TYPE_CHECKING:
    from watchkeeper.logs._render import Renderer
    from watchkeeper.logs.output._sink import Sink


class EventLog:
    """Writes events at or above a level."""

    def __init__(self, renderer: Renderer, sink: Sink, level: str) -> None:
        self.level: str = parse_level(level)
        self.threshold: int = LEVELS[self.level]
        self.sink: Final = sink
        self._renderer = renderer

    def set_level(self, level: str) -> None:
        """Change the lowest level that is written."""
        self.level = parse_level(level)
        self.threshold = LEVELS[self.level]

    def event(self, level: str, /, **fields: object) -> None:
        """Write a line with these fields; within a request it also has the request's ids."""
        self.write(ALIASES.get(level, "info"), fields)

    def exception(
        self, exc: BaseException, /, *, message: str, level: str = "error", **fields: object
    ) -> None:
        """Write a line about an exception, unless one has been written for this request already."""
        name = ALIASES.get(level, "error")
        if LEVELS[name] >= self.threshold and claim_exception(exc):
            self.write(name, {"msg": message, **fields, "error": exc})

    def write(self, level: str, fields: dict[str, Any]) -> None:
        """Write a line; the level is one of `LEVELS`."""
        if LEVELS[level] >= self.threshold:
            self.sink.write(self._renderer.line(level, fields))

    def render(self, level: str, fields: dict[str, Any]) -> bytes:
        """Return the line of an event, newline included."""
        return self._renderer.line(level, fields)

    def flush(self) -> None:
        """Write all buffered lines."""
        self.sink.flush()

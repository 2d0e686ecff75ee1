"""What the client saw, counted as the service must count it."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from realestate.monitoring import TOOLS

if TYPE_CHECKING:
    from collections.abc import Container

Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]

_PAIRING_REFUSALS: Final = frozenset({403, 410, 429})
# Recent latencies for the live display.
_WINDOW: Final = 2000


def series(name: str, **labels: str) -> Series:
    """Return the key of one series."""
    return name, frozenset(labels.items())


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts of one run. Only the configured webhook `sources` have series."""

    sources: Container[str]
    expected: Counter[Series] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    sessions: set[tuple[str, str]] = field(default_factory=set)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    unanswered: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """Number of answered requests."""
        return self.statuses.total()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one response, as `http_requests_total` and its histogram."""
        self.statuses[status] += 1
        self.latencies.append(seconds)
        self.expected[series("http_requests_total", method=method, route=route, status=str(status))] += 1
        self.expected[series("http_request_duration_ms_count", method=method, route=route)] += 1

    def webhook(self, source: str, status: int) -> None:
        """Count a refused delivery of a configured source."""
        if status >= 400 and source in self.sources:
            self.expected[series("webhook_failures_total", source=source)] += 1

    def tool(self, tool: str, status: int) -> None:
        """Count a call of a known tool with the token."""
        if tool in TOOLS and status != 401:
            outcome = "ok" if status < 400 else "rejected" if status < 500 else "error"
            self.expected[series("tool_calls_total", tool=tool, status=outcome)] += 1
            self.expected[series("tool_call_duration_ms_count", tool=tool)] += 1

    def pairing(self, channel: str, status: int) -> None:
        """Count a pairing attempt that was wrong, expired or locked out."""
        if status in _PAIRING_REFUSALS:
            self.expected[series("pairing_failures_total", channel=channel)] += 1

    def percentile(self, share: float) -> float:
        """Return a percentile of the recent latencies in seconds; `share` is 0 to 1."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0

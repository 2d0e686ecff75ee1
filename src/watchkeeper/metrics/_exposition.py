"""What a scraper reads: Prometheus text 0.0.4 or OpenMetrics 1.0, by its Accept header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import Metric

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_TEXT_RANGES: Final = frozenset(("text/plain", "text/*", "*/*"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposition:
    """One rendered scrape.

    Args:
        body: The metrics.
        content_type: The format of `body`, for the response's header.
    """

    body: bytes
    content_type: str


class _Families:
    """Families in the shape that prometheus_client's writers ask for."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def write(families: Iterable[Metric], accept: str) -> Exposition:
    """Write `families` in the format that `accept` prefers; text where it says nothing."""
    from prometheus_client import exposition, openmetrics  # noqa: PLC0415 - heavy, so on first use

    if prefers_openmetrics(accept):
        writer: Callable[[_Families], bytes] = openmetrics.exposition.generate_latest  # it has no types
        return Exposition(body=writer(_Families(families)), content_type=OPENMETRICS)
    return Exposition(body=exposition.generate_latest(_Families(families)), content_type=TEXT)


def prefers_openmetrics(accept: str) -> bool:
    """Say whether an Accept header wants OpenMetrics 1 at least as much as text (RFC 9110, 12.5.1)."""
    openmetrics = text = 0.0
    for media_range in accept.lower().split(","):
        media, *parameters = (part.strip() for part in media_range.split(";"))
        given = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        quality = _quality(given.get("q", "1"))
        if media == "application/openmetrics-text" and given.get("version", "1.0.0") in {"0.0.1", "1.0.0"}:
            openmetrics = max(openmetrics, quality)
        elif media in _TEXT_RANGES:
            text = max(text, quality)
    return openmetrics > 0.0 and openmetrics >= text


def _quality(value: str) -> float:
    try:
        quality = float(value)
    except ValueError:
        return 0.0
    return quality if 0.0 <= quality <= 1.0 else 0.0

"""One rendered scrape, and the negotiation of its format: Prometheus text 0.0.4 or OpenMetrics 1.0."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_GZIP: Final = 31  # zlib's window bits for gzip's header and trailer
_TEXT_RANGES: Final = frozenset(("text/plain", "text/*", "*/*"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposition:
    """One rendered scrape: its body in chunks, and the headers Content-Type and Content-Encoding."""

    chunks: tuple[bytes, ...]
    content_type: str
    encoding: str = ""

    @classmethod
    def of(cls, chunks: Iterable[bytes], *, openmetrics: bool) -> Self:
        """Return the exposition of these chunks, with the end mark of its format."""
        end = (b"# EOF\n",) if openmetrics else ()
        return cls(chunks=(*filter(None, chunks), *end), content_type=OPENMETRICS if openmetrics else TEXT)

    @property
    def body(self) -> bytes:
        """The metrics in one piece."""
        return b"".join(self.chunks)

    def compressed(self) -> Self:
        """Return this exposition compressed with gzip level 1: level 6 costs more than the rendering."""
        compressor = zlib.compressobj(level=1, wbits=_GZIP)
        chunks = (*(compressor.compress(chunk) for chunk in self.chunks), compressor.flush())
        return replace(self, chunks=tuple(filter(None, chunks)), encoding="gzip")


# prometheus_client's choose_encoder and gzip_accepted ignore q: they send what "q=0" refuses.


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an Accept-Encoding header accepts gzip (RFC 9110, 12.5.3)."""
    qualities = {coding: quality for coding, _, quality in _parse(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0.0


def prefers_openmetrics(accept: str) -> bool:
    """Return whether an Accept header wants OpenMetrics 1 at least as much as text (RFC 9110, 12.5.1)."""
    openmetrics = text = 0.0
    for media, version, quality in _parse(accept):
        if media == "application/openmetrics-text" and version in {"", "0.0.1", "1.0.0"}:
            openmetrics = max(openmetrics, quality)
        elif media in _TEXT_RANGES:
            text = max(text, quality)
    return openmetrics > 0.0 and openmetrics >= text


def _parse(header: str) -> Iterator[tuple[str, str, float]]:
    """Yield name, version and quality of each element of a header; an invalid quality is 0."""
    for element in header.lower().split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        given = dict(part.split("=", 1) for part in parameters if "=" in part)
        try:
            quality = float(given.get("q", "1"))
        except ValueError:
            quality = 0.0
        yield name, given.get("version", ""), quality if 0.0 <= quality <= 1.0 else 0.0

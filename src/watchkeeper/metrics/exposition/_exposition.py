"""What a scraper reads: Prometheus text 0.0.4 or OpenMetrics 1.0, by its Accept header."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_GZIP: Final = 31  # zlib's window bits for gzip's header and trailer
_TEXT_RANGES: Final = frozenset(("text/plain", "text/*", "*/*"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposition:
    """One rendered scrape.

    Args:
        chunks: The metrics, in pieces.
        content_type: The format, for the response's header.
        encoding: Of the content, for the response's header; nothing for none.
    """

    chunks: tuple[bytes, ...]
    content_type: str
    encoding: str = ""

    @classmethod
    def of(cls, chunks: Iterable[bytes], *, openmetrics: bool) -> Self:
        """Return the exposition of these pieces, complete with its end."""
        end = (b"# EOF\n",) if openmetrics else ()
        return cls(chunks=(*filter(None, chunks), *end), content_type=OPENMETRICS if openmetrics else TEXT)

    @property
    def body(self) -> bytes:
        """The metrics in one piece."""
        return b"".join(self.chunks)

    def compressed(self) -> Self:
        """Return the same, with gzip: at its quickest, a higher level costs more than the rendering."""
        packer = zlib.compressobj(level=1, wbits=_GZIP)
        chunks = (*(packer.compress(chunk) for chunk in self.chunks), packer.flush())
        return replace(self, chunks=tuple(filter(None, chunks)), encoding="gzip")


def accepts_gzip(accept_encoding: str) -> bool:
    """Say whether an Accept-Encoding header takes gzip (RFC 9110, 12.5.3)."""
    qualities = {}
    for part in accept_encoding.lower().split(","):
        coding, _, parameter = part.partition(";")
        name, _, value = parameter.strip().partition("=")
        qualities[coding.strip()] = _quality(value) if name == "q" else 1.0
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0.0


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

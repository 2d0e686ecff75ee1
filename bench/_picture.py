"""The picture of a run: bars for what is compared, lines for what grows; plain SVG, light and dark."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from bench import _words
from bench._figure import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench._figure import Curve, Figure

_COLUMN: Final = 460
_MARGIN: Final = 20
_HEAD: Final = 46  # title and unit of a panel
_ROW: Final = 22
_NAMES: Final = 240  # room for the names of bars
_PLOT: Final = 170  # height of a curve's plot
_STYLE: Final = """
svg { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --grid: #d1d9e0; --ours: #0969da; --peer: #8c959f; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --ink: #f0f6fc; --soft: #9198a1; --grid: #3d444d; --ours: #4493f8; --peer: #6e7681; }
}
text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.title { font-weight: 600; font-size: 13px; } .soft { fill: var(--soft); font-size: 11px; }
.ours { fill: var(--ours); } .peer { fill: var(--peer); } .end { text-anchor: end; } .middle { text-anchor: middle; }
.paper { fill: var(--paper); } .grid { stroke: var(--grid); }
polyline { fill: none; stroke-width: 2; } polyline.ours, circle.ours { stroke: var(--ours); }
polyline.peer, circle.peer { stroke: var(--peer); } text.ours { font-weight: 600; }
"""


def draw(figures: Iterable[Figure]) -> str:
    """Return the picture of these figures as the text of an SVG file."""
    shown = [figure for figure in figures if figure.ours is not None]
    panels = [(figure, _height(figure)) for figure in shown if figure.curve is None]
    panels += [(figure, _height(figure)) for figure in shown if figure.curve is not None]
    columns = ([0], [0])
    parts: list[str] = []
    for figure, height in panels:
        column = 0 if columns[0][0] <= columns[1][0] else 1
        x, y = _MARGIN + column * (_COLUMN + _MARGIN), _MARGIN + columns[column][0]
        parts.append(f'<g transform="translate({x} {y})">{"".join(_panel(figure))}</g>')
        columns[column][0] += height + _MARGIN
    width, height = 2 * _COLUMN + 3 * _MARGIN, max(columns[0][0], columns[1][0]) + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="Watchkeeper beside its peers"><style>{_STYLE}</style>'
        f'<rect class="paper" width="{width}" height="{height}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _height(figure: Figure) -> int:
    return _HEAD + (_ROW * len(_bars(figure)) if figure.curve is None else _PLOT + 40)


def _panel(figure: Figure) -> Iterator[str]:
    better = "more is better" if figure.more_is_better else "less is better"
    yield _text(0, 13, figure.title, "title")
    unit = f"{figure.unit}, {better}"
    yield _text(0, 30, unit if figure.curve is None else f"{unit}; both axes logarithmic", "soft")
    yield from _draw_bars(figure) if figure.curve is None else _draw_curve(figure.curve, figure.unit)


def _bars(figure: Figure) -> list[tuple[str, float]]:
    ours = [] if figure.ours is None else [(OURS, figure.ours.median)]
    peers = figure.peers or figure.beside
    return [*ours, *((name, peer.median) for name, peer in peers.items())]


def _draw_bars(figure: Figure) -> Iterator[str]:
    bars = _bars(figure)
    longest = max(max(value for _, value in bars), 1e-9)
    room = _COLUMN - _NAMES - 60
    for row, (name, value) in enumerate(bars):
        y, kind = _HEAD + row * _ROW, _kind(name)
        length = max(1.0, max(value, 0.0) / longest * room)
        yield _text(_NAMES - 8, y + 12, name, f"{kind} end" if name == OURS else "end")
        yield f'<rect class="{kind}" x="{_NAMES}" y="{y + 1}" width="{length:.1f}" height="15" rx="2"/>'
        yield _text(_NAMES + length + 6, y + 12, _words.number(value), "")


def _draw_curve(curve: Curve, unit: str) -> Iterator[str]:
    values = [value for line in curve.lines.values() for value in line if value]
    across = _Axis(curve.x, 56, _COLUMN - 16)
    up = _Axis(values, _HEAD + _PLOT, _HEAD)
    for tick in up.ticks():
        y = up.place(tick)
        yield f'<line class="grid" x1="56" x2="{_COLUMN - 16}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(50, y + 4, f"{tick:g}", "soft end")
    for x in curve.x:
        yield _text(across.place(x), _HEAD + _PLOT + 16, f"{x:,}", "soft middle")
    yield _text((56 + _COLUMN - 16) / 2, _HEAD + _PLOT + 34, curve.label, "soft middle")
    yield f'<text class="soft middle" transform="translate(12 {_HEAD + _PLOT / 2}) rotate(-90)">{escape(unit)}</text>'
    for name, line in curve.lines.items():
        points = [
            (across.place(x), up.place(value)) for x, value in zip(curve.x, line, strict=True) if value
        ]
        kind = _kind(name)
        yield f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        yield from (f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
        x, y = points[0]
        yield _text(x + 8, y - 8, name, "ours" if name == OURS else "soft")


class _Axis:
    """A logarithmic axis.

    Args:
        values: What it has to hold, above 0.
        start: Where its low end is in the picture.
        end: Where its high end is.
    """

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)) * 2) / 2
        self._high = max(math.ceil(math.log10(max(values)) * 2) / 2, self._low + 0.5)
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        """Return where a value is in the picture."""
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Return the powers of ten that it passes."""
        return [10.0**power for power in range(math.ceil(self._low), math.floor(self._high) + 1)]


def _kind(name: str) -> str:
    return "ours" if name == OURS else "peer"


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'

"""Draws a run as SVG: bars for comparisons, lines for growth; light and dark."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from bench import _format
from bench._figure import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench._figure import Curve, Figure

_COLUMN: Final = 490
_MARGIN: Final = 20
_HEAD: Final = 46  # title and unit of a panel
_ROW: Final = 22
_NAMES: Final = 265  # room for the names of bars
_PLOT: Final = 170  # height of a curve's plot
_TOP: Final = _HEAD + 20  # of the plot, below its legend
_LEFT: Final = 56  # of the plot, next to its ticks
_RIGHT: Final = _COLUMN - 20
_STYLE: Final = """
svg { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --grid: #d1d9e0; --ours: #0969da; --peer: #8c959f; }
@media (prefers-color-scheme: dark) { svg {
  --paper: #0d1117; --ink: #f0f6fc; --soft: #9198a1; --grid: #3d444d; --ours: #4493f8; --peer: #6e7681;
} }
text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.title { font-weight: 600; font-size: 13px; } .soft { fill: var(--soft); font-size: 11px; }
.ours { fill: var(--ours); } .peer { fill: var(--peer); } text.ours { font-weight: 600; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.paper { fill: var(--paper); } .grid { stroke: var(--grid); }
path { fill: none; stroke-width: 2; }
path.of-ours { stroke: var(--ours); } path.of-peer { stroke: var(--peer); }
"""


def draw(figures: Iterable[Figure]) -> str:
    """Return these figures as the text of an SVG file."""
    shown = [figure for figure in figures if figure.ours is not None]
    heights = [_MARGIN, _MARGIN]  # of the two columns
    parts: list[str] = []
    for figure in sorted(shown, key=lambda figure: figure.curve is not None):
        column = heights.index(min(heights))
        place = f"translate({_MARGIN + column * (_COLUMN + _MARGIN)} {heights[column]})"
        parts.append(f'<g transform="{place}">{"".join(_panel(figure))}</g>')
        heights[column] += _height(figure) + _MARGIN
    width, height = 2 * _COLUMN + 3 * _MARGIN, max(heights)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img" aria-label="Watchkeeper and its peers"><style>{_STYLE}</style>'
        f'<rect class="paper" width="{width}" height="{height}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _height(figure: Figure) -> int:
    return _HEAD + (_ROW * len(_bars(figure)) if figure.curve is None else 20 + _PLOT + 40)


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
    longest = max(1e-9, *(value for _, value in bars))
    room = _COLUMN - _NAMES - 60
    for row, (name, value) in enumerate(bars):
        y, kind = _HEAD + row * _ROW, _kind(name)
        length = max(1.0, max(value, 0.0) / longest * room)
        yield _text(_NAMES - 8, y + 12, name, f"{kind} end" if name == OURS else "end")
        yield f'<rect class="{kind}" x="{_NAMES}" y="{y + 1}" width="{length:.1f}" height="15" rx="2"/>'
        yield _text(_NAMES + length + 6, y + 12, _format.number(value), "")


def _draw_curve(curve: Curve, unit: str) -> Iterator[str]:
    x_axis = _Axis(curve.x, _LEFT, _RIGHT)
    values = [value for line in curve.lines.values() for value in line if value]
    y_axis = _Axis((_round(min(values), down=True), _round(max(values), down=False)), _TOP + _PLOT, _TOP)
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 6, y + 4, f"{tick:,g}", "soft end")
    for x in curve.x:
        yield _text(x_axis.place(x), _TOP + _PLOT + 18, f"{x:,}", "soft middle")
    yield _text((_LEFT + _RIGHT) / 2, _TOP + _PLOT + 36, curve.label, "soft middle")
    turned = f"translate(11 {_TOP + _PLOT / 2}) rotate(-90)"
    yield f'<text class="soft middle" transform="{turned}">{escape(unit)}</text>'
    for place, (name, line) in enumerate(curve.lines.items()):
        kind = _kind(name)
        points = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(curve.x, line, strict=True) if y]
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        yield f'<path class="of-{kind}" d="M{path}"/>'
        yield from (f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points)
        start = _LEFT + place * 110
        yield f'<rect class="{kind}" x="{start}" y="{_HEAD - 6}" width="10" height="10" rx="2"/>'
        yield _text(start + 15, _HEAD + 3, name, "ours" if kind == "ours" else "")


class _Axis:
    """A logarithmic axis for positive values, between two coordinates of the picture."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low, self._high = math.log10(min(values)), math.log10(max(values))
        if self._high - self._low < 0.01:  # nearly one value: draw it in the middle
            self._low, self._high = self._low - 0.5, self._high + 0.5
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        """Return the coordinate of a value."""
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Return the powers of ten on the axis; on a short one also their multiples by 2 and 5."""
        steps = (1, 2, 5) if self._high - self._low < 2 else (1,)
        numbers = _round_numbers(self._low, self._high, steps)
        return [number for number in numbers if self._low - 1e-9 <= math.log10(number) <= self._high + 1e-9]


def _round(value: float, *, down: bool) -> float:
    """Round to 1, 2 or 5 times a power of ten."""
    near = _round_numbers(math.log10(value), math.log10(value), (1, 2, 5))
    return max(n for n in near if n <= value) if down else min(n for n in near if n >= value)


def _round_numbers(low: float, high: float, steps: Sequence[int]) -> list[float]:
    powers = range(math.floor(low) - 1, math.ceil(high) + 2)
    return [step * 10.0**power for power in powers for step in steps]


def _kind(name: str) -> str:
    return "ours" if name == OURS else "peer"


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'

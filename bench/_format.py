"""Formats figures for readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench._figure import Goal, Spread


def number(value: float) -> str:
    """Return a value with three significant digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    for decimals, bound in ((0, 100), (1, 10), (2, 1)):
        if abs(value) >= bound:
            return f"{value:.{decimals}f}"
    return f"{value:.3f}" if value else "0"


def ratio(value: float) -> str:
    """Return a ratio as a fraction or a multiple, as the goals are worded."""
    if value <= 0.0:
        return "nothing"
    return f"1/{_digits(1 / value)}" if value < 1.0 else f"{_digits(value)} times"


def extremes(spread: Spread) -> str:
    """Return the lowest and the highest round; nothing if there was one round."""
    if spread.lowest == spread.highest:
        return ""
    return f"{number(spread.lowest)} to {number(spread.highest)}"


def measured(goal: Goal) -> str:
    """Return what was measured, as a ratio if the goal is one."""
    return ratio(goal.value) if goal.text.startswith("≤ 1/") else number(goal.value)


def verdict(goal: Goal) -> str:
    """Return whether a goal was reached; a missed stretch goal is "not yet"."""
    if goal.reached:
        return "reached"
    return "not yet" if goal.stretch else "MISSED"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"

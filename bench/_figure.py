"""A figure: our value next to each peer's, and the goals for it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OURS: Final = "watchkeeper"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and extremes of the rounds of one measurement."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of these values."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, values: Sequence[float], others: Sequence[float]) -> Spread:
        """Return the spread of each round's value divided by the other's in the same round.

        Other load on the machine slows both of a pair, so their ratio varies less than their times.
        """
        return cls.of([value / other for value, other in zip(values, others, strict=True) if other > 0.0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A goal, and what this run measured.

    Args:
        text: The goal in words.
        value: What was measured.
        at_most: The largest `value` that reaches the goal.
        stretch: Whether it is a stretch goal, which does not count.
    """

    text: str
    value: float
    at_most: float
    stretch: bool = False

    @property
    def reached(self) -> bool:
        """Whether the goal was reached."""
        return self.value <= self.at_most


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """How a figure grows.

    Args:
        label: What grows along the x axis.
        x: Its values, rising.
        lines: The values by name; None where there is none.
    """

    label: str
    x: tuple[int, ...]
    lines: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure of the report.

    Args:
        name: Stable, for `--only` and the JSON.
        title: What it is, in a few words.
        unit: Of every value.
        rounds: The values by name, one for each round; `OURS` is ours, those in `also` are not peers.
        also: Names in `rounds` that are shown but not compared: bare apps, variants of ours.
        goals: The goals for it.
        curve: How it grows; the values are then those at the right end.
        missing: Peers that could not be measured, with what to install.
        more_is_better: Whether it is a rate, not a cost.
    """

    name: str
    title: str
    unit: str
    rounds: Mapping[str, Sequence[float]]
    also: Sequence[str] = ()
    goals: Sequence[Goal] = ()
    curve: Curve | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    more_is_better: bool = False

    @property
    def ours(self) -> Spread | None:
        """Our value; None if it could not be measured."""
        return Spread.of(self.rounds[OURS]) if OURS in self.rounds else None

    @property
    def peers(self) -> dict[str, Spread]:
        """The peers' values."""
        return {name: Spread.of(values) for name, values in self.rounds.items() if self._is_peer(name)}

    @property
    def beside(self) -> dict[str, Spread]:
        """The values that are shown but not compared."""
        return {name: Spread.of(self.rounds[name]) for name in self.also if name in self.rounds}

    @property
    def ratios(self) -> dict[str, Spread]:
        """Our value divided by each peer's: median and extremes of the pairs."""
        return {name: Spread.of_ratios(self.rounds[OURS], self.rounds[name]) for name in self.peers}

    @property
    def ratio(self) -> float | None:
        """Our value divided by that of the best peer."""
        medians = [ratio.median for ratio in self.ratios.values()]
        if not medians:
            return None
        return min(medians) if self.more_is_better else max(medians)

    def as_json(self) -> dict[str, Any]:
        """Return the figure for the JSON report."""
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "ours": None if self.ours is None else self.ours.median,
            "peers": {name: peer.median for name, peer in self.peers.items()},
            "ratio": self.ratio,
            "ratios": {name: ratio.median for name, ratio in self.ratios.items()},
            "beside": {name: value.median for name, value in self.beside.items()},
            "rounds": {name: list(values) for name, values in self.rounds.items()},
            "goals": [_goal_as_json(goal) for goal in self.goals],
            "curve": None if self.curve is None else _curve_as_json(self.curve),
            "missing": dict(self.missing),
        }

    def _is_peer(self, name: str) -> bool:
        return name != OURS and name not in self.also


def growth_of(
    label: str, found: Mapping[tuple[int, str], Sequence[float]]
) -> tuple[Curve, dict[str, Sequence[float]]]:
    """Return the curve of these rounds, given by size and name, and the rounds at the largest size."""
    x = tuple(sorted({step for step, _ in found}))
    names = list(dict.fromkeys(name for _, name in found))
    lines = {name: tuple(Spread.of(found[step, name]).median for step in x) for name in names}
    return Curve(label=label, x=x, lines=lines), {name: found[x[-1], name] for name in names}


def at_most(text: str, rounds: Mapping[str, Sequence[float]], limit: float) -> list[Goal]:
    """Return the goal that our value is at most `limit`; nothing if it was not measured."""
    if OURS not in rounds:
        return []
    return [Goal(text=text, value=Spread.of(rounds[OURS]).median, at_most=limit)]


def share_of(
    peer: str, rounds: Mapping[str, Sequence[float]], divisor: float, *, stretch: bool = False
) -> list[Goal]:
    """Return the goal that ours is at most 1/`divisor` of a peer's; nothing if one of them is missing."""
    if OURS not in rounds or peer not in rounds:
        return []
    ratio = Spread.of_ratios(rounds[OURS], rounds[peer])
    text = f"≤ 1/{divisor:g} of {peer}"
    return [Goal(text=text, value=ratio.median, at_most=1.0 / divisor, stretch=stretch)]


def _goal_as_json(goal: Goal) -> dict[str, Any]:
    return {
        "text": goal.text,
        "value": goal.value,
        "at_most": goal.at_most,
        "stretch": goal.stretch,
        "reached": goal.reached,
    }


def _curve_as_json(curve: Curve) -> dict[str, Any]:
    lines = {name: list(values) for name, values in curve.lines.items()}
    return {"label": curve.label, "x": list(curve.x), "lines": lines}

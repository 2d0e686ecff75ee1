"""The lines of a scrape: text 0.0.4 and OpenMetrics 1.0 have the same sample lines.

https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
"""

from __future__ import annotations

import math
from operator import add, mod
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from watchkeeper.metrics._family import Family
    from watchkeeper.metrics._store import Exemplar

_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


def format_value(value: float) -> str:
    """Return a value as both formats write it."""
    if math.isfinite(value):
        return repr(value)
    return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"  # noqa: PLR0124 - NaN


def format_bound(bound: float) -> str:
    """Return a bucket's `le` as all Prometheus libraries for Python write it: 5000.0, 2.5e+06."""
    from prometheus_client import utils  # noqa: PLC0415 - heavy, so on first use

    return str(utils.floatToGoString(bound))  # type: ignore[no-untyped-call] # it has no types


def format_labels(names: Iterable[str], values: Iterable[str]) -> str:
    """Return labels without their braces: `a="1",b="2"`."""
    return ",".join(
        [f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True)]
    )


def format_head(family: Family, *, openmetrics: bool) -> str:
    """Return the HELP and TYPE lines of a family."""
    name, text = family.name, family.help.translate(_HELP_ESCAPES)
    if openmetrics:
        name = name.removesuffix("_total") if family.kind == "counter" else name
        text = text.replace('"', r"\"")
    return f"# HELP {name} {text}\n# TYPE {name} {family.kind}\n"


class CounterWriter:
    """Writes the lines of a counter's series."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def template(self, labels: tuple[str, ...]) -> str:
        """Return the constant part of a series' lines, for `write`."""
        pairs = format_labels(self._family.labels, labels)
        return f"{self._family.name}{{{pairs}}} " if pairs else f"{self._family.name} "

    def write(self, templates: Iterable[str], cells: Sequence[float]) -> list[str]:
        """Return the lines of each series; `cells` has their values, one series after the other."""
        return [f"{template}{cell!r}\n" for template, cell in zip(templates, cells, strict=True)]


class HistogramWriter:
    """Writes the lines of a histogram's series; see `CounterWriter`."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._bounds = [*map(format_bound, family.bounds), "+Inf"]

    def template(self, labels: tuple[str, ...]) -> str:
        """Return the constant part of a series' lines, as a %-format."""
        name = self._family.name
        pairs = format_labels(self._family.labels, labels).replace("%", "%%")
        before = pairs + "," if pairs else ""
        braced = f"{{{pairs}}}" if pairs else ""
        # Counts are whole numbers: %d.0 writes them as %r would, in half the time.
        lines = [f'{name}_bucket{{{before}le="{bound}"}} %d.0\n' for bound in self._bounds]
        return "".join((*lines, f"{name}_count{braced} %d.0\n{name}_sum{braced} %s\n"))

    def write(self, templates: Iterable[str], cells: Sequence[float]) -> list[str]:
        """Return the lines of each series, built column by column so that C does the loops."""
        width = len(self._bounds) + 1
        counts = [cells[::width]]
        for bucket in range(1, width - 1):
            counts.append(list(map(add, counts[-1], cells[bucket::width])))
        values = zip(*counts, counts[-1], map(repr, cells[width - 1 :: width]), strict=True)
        return list(map(mod, templates, values))


def format_created(family: Family, labels: tuple[str, ...], created: float) -> str:
    """Return OpenMetrics' line of when a series was created."""
    pairs = format_labels(family.labels, labels)
    name = family.name.removesuffix("_total")
    return f"{name}_created{{{pairs}}} {created!r}\n" if pairs else f"{name}_created {created!r}\n"


def add_exemplars(lines: str, exemplars: Mapping[int, Exemplar]) -> str:
    """Return a series' lines with exemplars, each given by the index of its cell in the series."""
    if not lines:
        return lines
    parts = lines.split("\n")
    for index, exemplar in exemplars.items():
        pairs = format_labels(exemplar.labels.keys(), exemplar.labels.values())
        parts[index] += f" # {{{pairs}}} {format_value(exemplar.value)} {exemplar.timestamp!r}"
    return "\n".join(parts)

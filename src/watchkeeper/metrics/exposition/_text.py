"""How series are written: text 0.0.4 and OpenMetrics 1.0 have the same sample lines.

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


def number(value: float) -> str:
    """Return a value as both formats have it."""
    if math.isfinite(value):
        return repr(value)
    return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"  # noqa: PLR0124 - NaN


def bound_text(bound: float) -> str:
    """Return a bucket's `le` as all Prometheus libraries for Python write it: 5000.0, 2.5e+06."""
    from prometheus_client import utils  # noqa: PLC0415 - heavy, so on first use

    return str(utils.floatToGoString(bound))  # type: ignore[no-untyped-call] # it has no types


def label_pairs(names: Iterable[str], values: Iterable[str]) -> str:
    """Return labels without their braces: `a="1",b="2"`."""
    return ",".join(
        [f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True)]
    )


def head(family: Family, *, openmetrics: bool) -> str:
    """Return the lines that stand before a family's samples."""
    name, text = family.name, family.help.translate(_HELP_ESCAPES)
    if openmetrics:
        name = name.removesuffix("_total") if family.kind == "counter" else name
        text = text.replace('"', r"\"")
    return f"# HELP {name} {text}\n# TYPE {name} {family.kind}\n"


class PlainWriter:
    """Writes the series of a counter.

    Args:
        family: Whose series.
    """

    def __init__(self, family: Family) -> None:
        self._family = family

    def template(self, labels: tuple[str, ...]) -> str:
        """Return what `write` needs of a series."""
        pairs = label_pairs(self._family.labels, labels)
        return f"{self._family.name}{{{pairs}}} " if pairs else f"{self._family.name} "

    def write(self, templates: Iterable[str], cells: Sequence[float]) -> list[str]:
        """Return the lines of each of some series.

        Args:
            templates: Of the series.
            cells: Theirs, one series after the other; finite numbers.
        """
        return [f"{template}{cell!r}\n" for template, cell in zip(templates, cells, strict=True)]


class HistogramWriter:
    """Writes the series of a histogram.

    Args:
        family: Whose series.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._bounds = [*map(bound_text, family.bounds), "+Inf"]

    def template(self, labels: tuple[str, ...]) -> str:
        """Return what `write` needs of a series."""
        name = self._family.name
        pairs = label_pairs(self._family.labels, labels).replace("%", "%%")
        before = pairs + "," if pairs else ""
        braced = f"{{{pairs}}}" if pairs else ""
        # Counts are whole numbers: %d.0 writes them as %r would, in half of its time.
        lines = [f'{name}_bucket{{{before}le="{bound}"}} %d.0\n' for bound in self._bounds]
        return "".join((*lines, f"{name}_count{braced} %d.0\n{name}_sum{braced} %s\n"))

    def write(self, templates: Iterable[str], cells: Sequence[float]) -> list[str]:
        """Return the lines of each of some series, made column by column: that is done in C.

        Args:
            templates: Of the series.
            cells: Theirs, one series after the other; finite numbers.

        Raises:
            OverflowError: What is in the buckets of a series adds up to more than a number can be.
        """
        width = len(self._bounds) + 1
        counts = [cells[::width]]
        for bucket in range(1, width - 1):
            counts.append(list(map(add, counts[-1], cells[bucket::width])))
        values = zip(*counts, counts[-1], map(repr, cells[width - 1 :: width]), strict=True)
        return list(map(mod, templates, values))


def created_line(family: Family, labels: tuple[str, ...], born: float) -> str:
    """Return OpenMetrics' line of when a series began."""
    pairs = label_pairs(family.labels, labels)
    name = family.name.removesuffix("_total")
    return f"{name}_created{{{pairs}}} {born!r}\n" if pairs else f"{name}_created {born!r}\n"


def with_exemplars(lines: str, exemplars: Mapping[int, Exemplar]) -> str:
    """Return a series' lines with exemplars behind those of their cells.

    Args:
        lines: What its writer wrote.
        exemplars: By the place of the cell among those of the series.
    """
    if not lines:
        return lines
    parts = lines.split("\n")
    for place, exemplar in exemplars.items():
        pairs = label_pairs(exemplar.labels.keys(), exemplar.labels.values())
        parts[place] += f" # {{{pairs}}} {number(exemplar.value)} {exemplar.at!r}"
    return "\n".join(parts)

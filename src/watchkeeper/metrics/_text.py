"""How series are written: text 0.0.4 and OpenMetrics 1.0 have the same sample lines.

https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

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


def writer_for(family: Family) -> Callable[[tuple[str, ...]], Callable[[Sequence[float]], str]]:
    """Return what makes, of a series' label values, what makes its lines of its cells."""
    return _histogram_writer(family) if family.kind == "histogram" else _plain_writer(family)


def _plain_writer(family: Family) -> Callable[[tuple[str, ...]], Callable[[Sequence[float]], str]]:
    def writer(labels: tuple[str, ...]) -> Callable[[Sequence[float]], str]:
        pairs = label_pairs(family.labels, labels)
        start = f"{family.name}{{{pairs}}} " if pairs else f"{family.name} "
        return lambda cells: f"{start}{number(cells[0])}\n"

    return writer


def _histogram_writer(family: Family) -> Callable[[tuple[str, ...]], Callable[[Sequence[float]], str]]:
    bounds = [*map(bound_text, family.bounds), "+Inf"]

    def writer(labels: tuple[str, ...]) -> Callable[[Sequence[float]], str]:
        pairs = label_pairs(family.labels, labels).replace("%", "%%")
        before = pairs + "," if pairs else ""
        braced = f"{{{pairs}}}" if pairs else ""
        # Counts are whole numbers: %d.0 writes them as %r would, in half of its time.
        lines = [f'{family.name}_bucket{{{before}le="{bound}"}} %d.0\n' for bound in bounds]
        template = "".join((*lines, f"{family.name}_count{braced} %d.0\n{family.name}_sum{braced} %s\n"))

        def write(cells: Sequence[float]) -> str:
            counts = tuple(accumulate(cells[:-1]))
            if not math.isfinite(counts[-1]):
                return ""  # a garbled slot, which its next worker sets aside
            return template % (*counts, counts[-1], number(cells[-1]))

        return write

    return writer


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
    parts = lines.split("\n")
    for place, exemplar in exemplars.items():
        pairs = label_pairs(exemplar.labels.keys(), exemplar.labels.values())
        parts[place] += f" # {{{pairs}}} {number(exemplar.value)} {exemplar.at!r}"
    return "\n".join(parts)

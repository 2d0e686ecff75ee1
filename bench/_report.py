"""The figures of a run as text, as JSON, and as the tables of docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import _format
from bench._figure import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench._figure import Figure

BEGIN: Final = (
    "<!-- Written by `python3 dev.py bench --markdown docs/performance.md`, up to the next mark. -->"
)
END: Final = "<!-- End of what the bench writes. -->"
_PACKAGES: Final = (
    "fastapi",
    "starlette",
    "litestar",
    "uvicorn",
    "prometheus-client",
    "prometheus-fastapi-instrumentator",
    "starlette-exporter",
    "opentelemetry-sdk",
    "structlog",
    "python-json-logger",
    "loguru",
)


class MarksError(Exception):
    """A page has no marks for the tables."""


def as_text(figure: Figure) -> str:
    """Return one figure as it is printed while the bench runs."""
    lines = [f"{figure.name}: {figure.title} ({figure.unit})"]
    lines += [f"  {name:<48} {value:>9} {of:>9}  {spread}" for name, value, of, spread in _rows(figure)]
    lines += [
        f"  {goal.text:<48} {_format.measured(goal):>9}   {_format.verdict(goal)}" for goal in figure.goals
    ]
    if figure.curve is not None:
        lines.append(f"  {figure.curve.label:<48} " + " ".join(f"{x:>9,}" for x in figure.curve.x))
        for name, values in figure.curve.lines.items():
            lines.append(f"  {name:<48} " + " ".join(f"{_value(value):>9}" for value in values))
    lines += [f"  {name} was not measured: {remedy}" for name, remedy in figure.missing.items()]
    return "\n".join(lines) + "\n"


def write_json(figures: Iterable[Figure], path: Path) -> None:
    """Write one object for each figure."""
    path.write_text(json.dumps([figure.as_json() for figure in figures], indent=2) + "\n", encoding="utf-8")


def write_markdown(figures: Sequence[Figure], path: Path, run: str) -> None:
    """Replace the tables between the marks of a page; `run` is the text of `describe_run`.

    Raises:
        MarksError: The page has no marks.
    """
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MarksError(f"{path} needs the lines {BEGIN!r} and {END!r}: the tables go between them.")
    tables = "\n".join((run, *_markdown(figures)))
    path.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")


def describe_run() -> str:
    """Return the date, the machine and the versions of a run."""
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    node = shutil.which("node")
    if node is not None:
        found = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
        packages += f", Node {found.strip().removeprefix('v')}"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {_processor()}, {platform.system()},"
        f" {platform.python_implementation()} {platform.python_version()}; {packages}."
    )


def _processor() -> str:
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        known = []
    names = [line.partition(":")[2].strip() for line in known if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _rows(figure: Figure) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, value, our ratio to it, and the spread of the rounds."""
    if figure.ours is not None:
        yield OURS, _format.number(figure.ours.median), "", _format.extremes(figure.ours)
    for name, peer in figure.peers.items():
        of = figure.ratios[name].median if figure.ours is not None else 0.0
        yield name, _format.number(peer.median), _format.ratio(of), _format.extremes(peer)
    for name, value in figure.beside.items():
        yield name, _format.number(value.median), "", _format.extremes(value)


def _markdown(figures: Sequence[Figure]) -> Iterator[str]:
    yield "\n| figure | goal | measured | |\n|---|---|---|---|"
    for figure in figures:
        for goal in figure.goals:
            text = f"{goal.text} (stretch)" if goal.stretch else goal.text
            measured, verdict = _format.measured(goal), _format.verdict(goal)
            yield f"| `{figure.name}` | {text} | {measured} | {verdict} |"
    yield "\n| figure | | value | our ratio | lowest and highest |\n|---|---|---:|---:|---|"
    for figure in figures:
        if figure.curve is None:
            yield from _markdown_rows(figure)
    for figure in figures:
        if figure.curve is not None:
            yield from _markdown_curve(figure)
    for figure in figures:
        for name, remedy in figure.missing.items():
            yield f"\nNot measured in `{figure.name}`: {name} ({remedy})."


def _markdown_rows(figure: Figure) -> Iterator[str]:
    head = f"`{figure.name}`: {figure.title}, {figure.unit}"
    for name, value, of, spread in _rows(figure):
        yield f"| {head} | {name} | {value} | {of} | {spread} |"
        head = ""


def _markdown_curve(figure: Figure) -> Iterator[str]:
    curve = figure.curve
    if curve is None:
        return
    yield f"\n`{figure.name}`: {figure.title}, {figure.unit}\n"
    yield f"| {curve.label} | " + " | ".join(f"{x:,}" for x in curve.x) + " |"
    yield "|---|" + "---:|" * len(curve.x)
    for name, values in curve.lines.items():
        yield f"| {name} | " + " | ".join(map(_value, values)) + " |"


def _value(value: float | None) -> str:
    return "" if value is None else _format.number(value)

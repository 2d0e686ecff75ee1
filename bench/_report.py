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

from bench import _words
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
    """A page lacks the marks between which the tables go."""


def as_text(figure: Figure) -> str:
    """Return one figure as it is shown while the bench runs."""
    lines = [f"{figure.name}: {figure.title} ({figure.unit})"]
    lines += [f"  {name:<48} {value:>9} {of:>9}  {spread}" for name, value, of, spread in _rows(figure)]
    lines += [
        f"  {goal.text:<48} {_words.measured(goal):>9}   {_words.verdict(goal)}" for goal in figure.goals
    ]
    if figure.curve is not None:
        lines.append(f"  {figure.curve.label:<48} " + " ".join(f"{x:>9,}" for x in figure.curve.x))
        for name, values in figure.curve.lines.items():
            lines.append(f"  {name:<48} " + " ".join(f"{_value(value):>9}" for value in values))
    lines += [f"  {name} was left out: {remedy}" for name, remedy in figure.missing.items()]
    return "\n".join(lines) + "\n"


def write_json(figures: Iterable[Figure], path: Path) -> None:
    """Write one object a figure."""
    path.write_text(json.dumps([figure.as_json() for figure in figures], indent=2) + "\n", encoding="utf-8")


def write_markdown(figures: Sequence[Figure], path: Path, run: str) -> None:
    """Put the tables of this run in the place of the last one's.

    Args:
        figures: Of this run.
        path: Of the page.
        run: What `describe_run` says of it.

    Raises:
        MarksError: The page has no place for them.
    """
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MarksError(f"{path} needs the lines {BEGIN!r} and {END!r}, between which the tables go.")
    tables = "\n".join((run, *_markdown(figures)))
    path.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")


def describe_run() -> str:
    """Name the machine and the versions that a run's figures belong to."""
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
    """Give name, value, what ours is of it, and the spread of the rounds."""
    if figure.ours is not None:
        yield OURS, _words.number(figure.ours.median), "", _words.extremes(figure.ours)
    for name, peer in figure.peers.items():
        of = figure.ratios[name].median if figure.ours is not None else 0.0
        yield name, _words.number(peer.median), _words.ratio(of), _words.extremes(peer)
    for name, value in figure.beside.items():
        yield name, _words.number(value.median), "", _words.extremes(value)


def _markdown(figures: Sequence[Figure]) -> Iterator[str]:
    yield "\n| figure | promise | measured | |\n|---|---|---|---|"
    for figure in figures:
        for goal in figure.goals:
            text = f"{goal.text} (hoped for)" if goal.stretch else goal.text
            measured, verdict = _words.measured(goal), _words.verdict(goal)
            yield f"| `{figure.name}` | {text} | {measured} | {verdict} |"
    yield "\n| figure | | value | ours is | lowest and highest |\n|---|---|---:|---:|---|"
    for figure in figures:
        if figure.curve is None:
            yield from _markdown_rows(figure)
    for figure in figures:
        if figure.curve is not None:
            yield from _markdown_curve(figure)
    for figure in figures:
        for name, remedy in figure.missing.items():
            yield f"\nLeft out of `{figure.name}`: {name} ({remedy})."


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
    return "" if value is None else _words.number(value)

"""`python3 dev.py bench`: measures all figures one after the other and says which goals were reached."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import (
    fastify,
    growth,
    imports,
    instruments,
    line,
    memory,
    partitions,
    request,
    retention,
    routes,
    scrape,
    throughput,
)
from bench._report import MarksError, as_text, describe_run, write_json, write_markdown
from bench._rounds import Effort
from bench._svg import draw
from bench._workers import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench._figure import Figure

FIGURES: Final[dict[str, tuple[Callable[[Effort], Figure], str]]] = {
    "request": (request.measure, "what monitoring adds to a request, in process"),
    "fastify": (fastify.measure, "the same as processes, beside the original's stack under Node"),
    "throughput": (throughput.measure, "the whole backend with its database, bare and monitored"),
    "inc": (instruments.measure_inc, "a counter's inc, several workers"),
    "observe": (instruments.measure_observe, "a histogram's observe, several workers"),
    "scrape": (scrape.measure, "a scrape across all workers"),
    "line": (line.measure, "one request line"),
    "memory": (memory.measure, "growth over a million requests, half of them hostile"),
    "import": (imports.measure, "a fresh process that imports it"),
    "prune-random": (retention.measure_random, "pruning most of a table, in random order"),
    "prune-ordered": (retention.measure_ordered, "the same in time order"),
    "prune-locked": (retention.measure_locked, "the same while others have rows locked"),
    "prune-few": (retention.measure_few, "pruning 0.1 % of a table"),
    "prune-partition": (partitions.measure, "pruning by dropping partitions, while others insert"),
    "prune-others": (retention.measure_others, "what pruning costs concurrent inserts"),
    "prune-random-15": (retention.on_15(retention.measure_random), "prune-random on Debian's PostgreSQL 15"),
    "prune-ordered-15": (retention.on_15(retention.measure_ordered), "prune-ordered on the same"),
    "prune-locked-15": (retention.on_15(retention.measure_locked), "prune-locked on the same"),
    "prune-few-15": (retention.on_15(retention.measure_few), "prune-few on the same"),
    "prune-partition-15": (retention.on_15(partitions.measure), "prune-partition on the same"),
    "prune-by-rows": (retention.measure_by_rows, "how pruning grows with the table"),
    "scrape-by-series": (growth.measure_by_series, "how a scrape grows with the series"),
    "scrape-by-routes": (growth.measure_by_routes, "how a scrape grows with the routes"),
    "scrape-by-workers": (growth.measure_by_workers, "how a scrape grows with the workers"),
    "request-by-routes": (routes.measure, "how the cost of a request grows with the routes"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code: 1 where something could not be measured or written.

    Args:
        argv: The arguments; default: those of the process.
    """
    options = _parser().parse_args(argv)
    if options.list:
        for name, (_, about) in FIGURES.items():
            print(f"{name:<20}{about}")
        return 0
    # Exit normally, so that child processes are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run = describe_run()
    print(f"{run}\n", flush=True)
    figures, complete = _measure(options.only or list(FIGURES), Effort(quick=options.quick))
    if options.json:
        write_json(figures, options.json)
    if options.svg:
        options.svg.write_text(draw(figures), encoding="utf-8")
    if options.markdown:
        try:
            write_markdown(figures, options.markdown, run)
        except MarksError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    goals = [goal for figure in figures for goal in figure.goals if not goal.stretch]
    reached = sum(goal.reached for goal in goals)
    print(f"{reached} of {len(goals)} goals reached.")
    return 0 if complete else 1


def _measure(names: Sequence[str], effort: Effort) -> tuple[list[Figure], bool]:
    figures: list[Figure] = []
    for name in names:
        started = time.monotonic()
        try:
            figure = FIGURES[name][0](effort)
        except (WorkerError, OSError) as error:
            print(f"bench: {name} could not be measured: {error}", file=sys.stderr, flush=True)
            continue
        figures.append(figure)
        print(as_text(figure), flush=True)
        print(f"bench: {name} took {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return figures, len(figures) == len(names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 dev.py bench", description="Compares Watchkeeper with its peers."
    )
    parser.add_argument(
        "--only", action="append", choices=tuple(FIGURES), metavar="NAME", help="one figure; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="a short run with coarse figures")
    parser.add_argument("--list", action="store_true", help="name the figures and measure nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one object for each figure")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables into a page")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)

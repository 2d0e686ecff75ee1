"""`retention run`: delete what is older than its policy keeps it, now."""

from __future__ import annotations

import argparse
import asyncio
import signal
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from watchkeeper.cli._screen import Screen, duration, unnamed
from watchkeeper.cli.retention._plan import show_plans
from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import Plan, Retention, RunResult


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("run", help="delete what is older than its policy keeps it, now")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="only these policies; default all")
    parser.add_argument(
        "--allow-share",
        type=_share,
        metavar="SHARE",
        help="what may go of a table, such as 0.8; default WATCHKEEPER_RETENTION_MAX_SHARE",
    )
    parser.add_argument(
        "--budget",
        type=_share,
        metavar="SHARE",
        help="share of the time that it may take, 1 for flat out; default WATCHKEEPER_RETENTION_BUDGET",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=execute)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(f"a share is a number over 0 and up to 1, such as 0.5, not {text}")
    return share


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Run the policies; 1 if one of them did not complete."""
    if not arguments.yes and not screen.terminal:
        raise ConfigurationError("Without a terminal nobody can be asked: say --yes to delete rows.")
    retention = keeper.retention
    tables = arguments.tables or None
    limits = replace(
        retention.limits,
        share=arguments.allow_share or retention.limits.share,
        budget=arguments.budget or retention.limits.budget,
    )
    totals: dict[str, int] = {}
    problems = 0
    if screen.terminal:
        plans = await retention.plan(tables, limits=limits)
        show_plans(plans, screen)
        totals = {plan.policy.name: plan.rows for plan in plans if not plan.problem}
        problems = len(plans) - len(totals)
        if not arguments.yes and not await _ask(plans, screen):
            return int(problems > 0)
        if not arguments.yes:
            tables = list(totals)  # what was asked for
    with _stoppable(retention), screen.progress(totals) as bars:
        results = await retention.run_now(tables, limits=limits, observer=bars)
    _show(results, screen)
    return int(problems > 0 or any(result.status != "completed" for result in results))


async def _ask(plans: Sequence[Plan], screen: Screen) -> bool:
    """Ask whether what can be run is to be run; no question where that would delete nothing."""
    runnable = [plan for plan in plans if not plan.problem]
    rows = sum(plan.rows for plan in runnable)
    if not rows and all(plan.exact for plan in runnable):
        screen.say("Nothing can be run." if not runnable else "There is nothing to delete.")
        return False
    about_ = "" if all(plan.exact for plan in runnable) else "about "
    of = "" if len(runnable) == len(plans) else f" of {', '.join(plan.policy.name for plan in runnable)}"
    if await screen.ask(f"Delete {about_}{rows:,} rows{of} now?"):
        return True
    screen.say("Nothing was deleted.")
    return False


@contextmanager
def _stoppable(retention: Retention) -> Iterator[None]:
    """Have Ctrl-C end the run between two transactions, closed and audited."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, retention.interrupt)
    loop.add_signal_handler(signal.SIGTERM, retention.interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


def _show(results: list[RunResult], screen: Screen) -> None:
    if screen.json:
        screen.document([_document(result) for result in results])
        return
    for result in results:
        screen.say(_sentence(result))
        for note in result.notes:
            screen.say(f"{result.table}: {note}")


def _sentence(result: RunResult) -> str:
    run = f" (run {result.run})" if result.run is not None else ""
    text = f"{result.table}: {result.status}, {result.deleted:,} rows deleted"
    if result.error is not None:
        return f"{text}{run}: {unnamed(result.table, _one_line(result.error))}"
    return f"{text} in {duration(result.duration)}{run}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _document(result: RunResult) -> dict[str, object]:
    return {
        "table": result.table,
        "status": result.status,
        "deleted": result.deleted,
        "duration_seconds": result.duration,
        "run": result.run,
        "error": None if result.error is None else _one_line(result.error),
        "notes": result.notes,
    }

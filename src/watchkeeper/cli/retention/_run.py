"""`retention run`: deletes rows past their retention period now, regardless of the schedule."""

from __future__ import annotations

import argparse
import asyncio
import signal
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command, add_json, add_tables, add_yes, require_yes
from watchkeeper.cli._text import drop_subject, format_duration, format_rows
from watchkeeper.cli.retention._plan import show_plans
from watchkeeper.database._connection import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import Plan, Retention, RunResult


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-share",
        type=_share,
        metavar="SHARE",
        help="largest share of a table to delete, such as 0.8; default WATCHKEEPER_RETENTION_MAX_SHARE",
    )
    parser.add_argument(
        "--budget",
        type=_share,
        metavar="SHARE",
        help="share of the time spent deleting, 1 for no pauses; default WATCHKEEPER_RETENTION_BUDGET",
    )


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    require_yes(arguments, screen, "delete rows")
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
        if not arguments.yes:
            if not await _confirm(plans, screen):
                return int(problems > 0)
            tables = list(totals)  # those the user confirmed
    with _stop_on_signal(retention), screen.progress(totals) as bars:
        results = await retention.run_now(tables, limits=limits, observer=bars)
    _show(results, screen)
    return int(problems > 0 or any(result.status != "completed" for result in results))


RUN: Final = Command(
    name="run",
    help="run policies now: delete rows past their retention period",
    arguments=(add_tables, _add_limits, add_yes, add_json),
    execute=_execute,
)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(f"a share is greater than 0 and at most 1, such as 0.5, not {text}")
    return share


async def _confirm(plans: Sequence[Plan], screen: Screen) -> bool:
    """Ask whether to run the policies that can run, unless that would delete nothing."""
    runnable = [plan for plan in plans if not plan.problem]
    rows = sum(plan.rows for plan in runnable)
    exact = all(plan.exact for plan in runnable)
    if not rows and exact:
        screen.write_line("There is nothing to delete." if runnable else "No policy can run.")
        return False
    about = "" if exact else "about "
    of = "" if len(runnable) == len(plans) else f" of {', '.join(plan.policy.name for plan in runnable)}"
    if await screen.ask(f"Delete {about}{format_rows(rows)}{of} now?"):
        return True
    screen.write_line("Nothing was deleted.")
    return False


@contextmanager
def _stop_on_signal(retention: Retention) -> Iterator[None]:
    """Let Ctrl-C stop the run between two transactions; the run is closed and audited."""
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
        screen.write_json([_document(result) for result in results])
        return
    for result in results:
        screen.write_line(_sentence(result))
        for note in result.notes:
            screen.write_line(f"{result.table}: {note}")


def _sentence(result: RunResult) -> str:
    run = f" (run {result.run})" if result.run is not None else ""
    text = f"{result.table}: {result.status}, {format_rows(result.deleted)} deleted"
    if result.error is not None:
        return f"{text}{run}: {drop_subject(result.table, one_line(result.error))}"
    return f"{text} in {format_duration(result.duration)}{run}"


def _document(result: RunResult) -> dict[str, object]:
    return {
        "table": result.table,
        "status": result.status,
        "deleted": result.deleted,
        "duration_seconds": result.duration,
        "run": result.run,
        "error": None if result.error is None else one_line(result.error),
        "notes": result.notes,
    }

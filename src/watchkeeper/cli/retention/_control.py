"""`retention pause`, `resume` and `cancel`: stop and resume the runs of one policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command, add_by, add_json, add_table

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


async def _pause(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    run = await keeper.retention.operator.pause(arguments.table, by=arguments.by)
    consequence = "no run starts until it is resumed"
    if run is not None:
        consequence = f"run {run} deletes nothing more, and {consequence}"
    return _show(screen, arguments, "paused", run, consequence)


async def _resume(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    run = await keeper.retention.operator.resume(arguments.table, by=arguments.by)
    consequence = "a scheduled run continues where it stopped; start a manual run again"
    if run is not None:
        consequence = f"run {run} continues"
    return _show(screen, arguments, "resumed", run, consequence)


async def _cancel(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    run = await keeper.retention.operator.cancel(arguments.table, by=arguments.by)
    consequence = f"run {run} deletes nothing more; the next scheduled run deletes the remaining rows"
    return _show(screen, arguments, "cancelled", run, consequence)


def _show(
    screen: Screen, arguments: argparse.Namespace, status: str, run: int | None, consequence: str
) -> int:
    if screen.json:
        screen.write_json({"table": arguments.table, "status": status, "run": run, "by": arguments.by})
    else:
        screen.write_line(f"{arguments.table}: {status} by {arguments.by}; {consequence}")
    return 0


PAUSE: Final = Command(
    name="pause",
    help="pause a policy and stop its current run",
    arguments=(add_table, add_by, add_json),
    execute=_pause,
)
RESUME: Final = Command(
    name="resume",
    help="resume a paused policy; its scheduled run continues where it stopped",
    arguments=(add_table, add_by, add_json),
    execute=_resume,
)
CANCEL: Final = Command(
    name="cancel",
    help="cancel the current run of a policy; the next scheduled run deletes the remaining rows",
    arguments=(add_table, add_by, add_json),
    execute=_cancel,
)

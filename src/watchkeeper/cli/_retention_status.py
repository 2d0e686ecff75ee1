"""`retention status`: how each policy stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.cli._screen import Screen, days

if TYPE_CHECKING:
    import argparse

    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import PolicyStatus


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("status", help="last run, last success and next due of each policy")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="only these policies; default all")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=execute)


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Show the status; 1 if the last run of a policy failed or was refused."""
    found = await keeper.retention.status(arguments.tables or None)
    if screen.json:
        screen.document([_document(status) for status in found])
    elif screen.terminal:
        screen.table(
            "Retention",
            ("Table", "Kept", "Last run", "State", "#Rows", "Last success", "Next due"),
            [_cells(status, screen) for status in found],
        )
    else:
        for status in found:
            screen.say(_sentence(status, screen))
    if screen.terminal:
        for status in found:
            if status.last is not None and status.last.error is not None:
                screen.say(
                    f"{status.policy.name}: run {status.last.id} {status.last.state}: {status.last.error}"
                )
    return int(
        any(status.last is not None and status.last.state in {"failed", "refused"} for status in found)
    )


def _cells(status: PolicyStatus, screen: Screen) -> tuple[str, ...]:
    last = status.last
    return (
        status.policy.name,
        days(status.policy.keep),
        screen.time(last.started_at if last else None),
        f"{last.state} ({last.trigger})" if last else "never ran",
        f"{last.deleted:,}" if last else "-",
        screen.time(status.last_success),
        screen.time(status.next_due),
    )


def _sentence(status: PolicyStatus, screen: Screen) -> str:
    last = status.last
    text = f"{status.policy.name}: kept {days(status.policy.keep)}, next due {screen.time(status.next_due)}"
    if last is None:
        return f"{text}, never ran"
    error = f": {last.error}" if last.error else ""
    return (
        f"{text}, last success {screen.time(status.last_success)}, run {last.id} ({last.trigger},"
        f" {screen.time(last.started_at)}) {last.state}, {last.deleted:,} rows deleted{error}"
    )


def _document(status: PolicyStatus) -> dict[str, object]:
    last = status.last
    return {
        "table": status.policy.name,
        "keep_seconds": status.policy.keep,
        "since": status.since,
        "next_due": status.next_due,
        "last_success": status.last_success,
        "last_run": None
        if last is None
        else {
            "run": last.id,
            "state": last.state,
            "trigger": last.trigger,
            "started_at": last.started_at,
            "finished_at": last.finished_at,
            "deleted": last.deleted,
            "error": last.error,
        },
    }

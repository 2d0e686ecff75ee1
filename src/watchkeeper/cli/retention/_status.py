"""`retention status`: shows the state of each policy, its current run and its dead rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command, add_json, add_tables
from watchkeeper.cli._screen import select_fields
from watchkeeper.cli._text import drop_subject, format_days, format_duration, format_rows

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import PastRun, PolicyStatus
    from watchkeeper.retention.table._vacuum import Vacuum

_NO_TABLE: Final = "there is no such table that the service can see"


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    found = await keeper.retention.status(arguments.tables or None)
    if screen.json:
        screen.write_json([_document(status) for status in found])
    elif screen.terminal:
        _show_tables(found, screen)
    else:
        for status in found:
            screen.write_line(_sentence(status, screen))
    return int(
        any(status.last is not None and status.last.state in {"failed", "refused"} for status in found)
    )


STATUS: Final = Command(
    name="status",
    help="show each policy's last and next run, progress, and dead rows",
    arguments=(add_tables, add_json),
    execute=_execute,
)


def _show_tables(found: Sequence[PolicyStatus], screen: Screen) -> None:
    screen.write_table(
        "Retention",
        ("Table", "Kept", "Last run", "State", "#Rows", "Last success", "Next run"),
        [_cells(status, screen) for status in found],
    )
    running = [(status, status.last) for status in found if status.last and status.last.state == "running"]
    if running:
        screen.write_table(
            "Current runs",
            ("Table", "#Rows", "#Planned", "#Done", "#Rows/s", "#Left", "Waits for"),
            [_progress_cells(status, last) for status, last in running],
        )
    screen.write_table(
        "Dead rows",
        ("Table", "#Dead", "#Autovacuum at", "Vacuumed", "State"),
        [_vacuum_cells(status.vacuum, screen) for status in found if status.vacuum],
    )
    for status in found:
        name = status.policy.name
        if status.vacuum is None:
            screen.write_line(f"{name}: {_NO_TABLE}")
        if status.paused_at is not None:
            screen.write_line(f"{name}: {_paused(status, screen)}")
        if status.last is not None and status.last.error is not None:
            error = drop_subject(name, status.last.error)
            screen.write_line(f"{name}: run {status.last.id} {status.last.state}: {error}")


def _cells(status: PolicyStatus, screen: Screen) -> tuple[str, ...]:
    last = status.last
    return (
        status.policy.name,
        format_days(status.policy.keep),
        screen.format_time(last.started_at if last else None),
        f"{last.state} ({last.trigger})" if last else "never ran",
        f"{last.deleted:,}" if last else "-",
        screen.format_time(status.last_success),
        "paused" if status.paused_at else screen.format_time(status.next_due),
    )


def _progress_cells(status: PolicyStatus, last: PastRun) -> tuple[str, ...]:
    left = last.left(status.now)
    return (
        status.policy.name,
        f"{last.deleted:,}",
        "-" if last.planned is None else f"{last.planned:,}",
        _share(last) or "-",
        f"{last.rate(status.now):,.0f}",
        "-" if left is None else format_duration(left),
        last.waiting or "-",
    )


def _vacuum_cells(vacuum: Vacuum, screen: Screen) -> tuple[str, ...]:
    return (
        vacuum.table,
        f"{vacuum.dead:,}",
        f"{vacuum.starts_at:,.0f}" if vacuum.automatic else "-",
        screen.format_time(vacuum.vacuumed_at),
        _vacuum_state(vacuum),
    )


def _sentence(status: PolicyStatus, screen: Screen) -> str:
    last = status.last
    next_run = f"next run {screen.format_time(status.next_due)}"
    if status.paused_at is not None:
        next_run = _paused(status, screen)
    vacuum = _NO_TABLE if status.vacuum is None else _vacuum(status.vacuum, screen)
    text = f"{status.policy.name}: kept {format_days(status.policy.keep)}, {next_run}, {vacuum}"
    if last is None:
        return f"{text}, never ran"
    success = f"last success {screen.format_time(status.last_success)}"
    if status.last_success is None:
        success = "no success yet"
    error = f": {drop_subject(status.policy.name, last.error)}" if last.error else ""
    return (
        f"{text}, {success}, run {last.id} ({last.trigger}, {screen.format_time(last.started_at)})"
        f" {last.state}, {_progress(status, last)}{error}"
    )


def _progress(status: PolicyStatus, last: PastRun) -> str:
    if last.state != "running":
        return f"{format_rows(last.deleted)} deleted"
    planned = "" if last.planned is None else f" of about {last.planned:,}"
    share = f" ({_share(last)})" if _share(last) else ""
    left = last.left(status.now)
    rest = "" if left is None else f", about {format_duration(left)} left"
    waits = f", waits ({last.waiting})" if last.waiting else ""
    return f"{last.deleted:,}{planned} rows deleted{share}, {last.rate(status.now):,.0f} rows/s{rest}{waits}"


def _share(last: PastRun) -> str:
    return f"{min(last.deleted / last.planned, 1.0):.0%}" if last.planned else ""


def _paused(status: PolicyStatus, screen: Screen) -> str:
    return f"paused by {status.paused_by} since {screen.format_time(status.paused_at)}"


def _vacuum(vacuum: Vacuum, screen: Screen) -> str:
    when = "never vacuumed"
    if vacuum.vacuumed_at is not None:
        when = f"last vacuumed {screen.format_time(vacuum.vacuumed_at)}"
    return f"{vacuum.dead:,} dead rows ({when}; {_vacuum_state(vacuum)})"


def _vacuum_state(vacuum: Vacuum) -> str:
    if not vacuum.automatic:
        return "autovacuum is off"
    return "autovacuum is behind" if vacuum.is_behind() else "autovacuum keeps up"


def _document(status: PolicyStatus) -> dict[str, object]:
    return {
        "table": status.policy.name,
        "keep_seconds": status.policy.keep,
        "since": status.since,
        "next_due": None if status.paused_at is not None else status.next_due,
        "paused_at": status.paused_at,
        "paused_by": status.paused_by,
        "last_success": status.last_success,
        "last_run": None if status.last is None else _run_document(status, status.last),
        "vacuum": None if status.vacuum is None else _vacuum_document(status.vacuum),
    }


def _vacuum_document(vacuum: Vacuum) -> dict[str, object]:
    return {
        "dead_rows": vacuum.dead,
        "automatic": vacuum.automatic,
        "starts_at": round(vacuum.starts_at) if vacuum.automatic else None,
        "behind": vacuum.is_behind(),
        "vacuumed_at": vacuum.vacuumed_at,
    }


def _run_document(status: PolicyStatus, last: PastRun) -> dict[str, object]:
    return {
        "run": last.id,
        **select_fields(last, "state", "trigger", "started_at", "finished_at", "deleted", "planned"),
        "rows_per_second": round(last.rate(status.now), 1),
        "left_seconds": last.left(status.now) if last.state == "running" else None,
        **select_fields(last, "waiting", "error"),
    }

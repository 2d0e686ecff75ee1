"""`retention plan`: shows what a run would delete now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command, add_json, add_tables
from watchkeeper.cli._screen import select_fields
from watchkeeper.cli._text import drop_subject, format_bytes, format_days, format_duration, format_rows

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import Hold, Plan

_MAX_HOLDS: Final = 5  # in a sentence


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    plans = await keeper.retention.plan(arguments.tables or None)
    show_plans(plans, screen)
    return int(any(plan.problem for plan in plans))


PLAN: Final = Command(
    name="plan",
    help="show what a run would delete now, without deleting it",
    arguments=(add_tables, add_json),
    execute=_execute,
)


def show_plans(plans: Sequence[Plan], screen: Screen) -> None:
    """Show what runs would delete."""
    if screen.json:
        screen.write_json([_document(plan) for plan in plans])
        return
    if screen.terminal:
        screen.write_table(
            "What a run would delete now",
            ("Table", "Kept", "Older than", "#Rows", "#Of table", "#Held", "Oldest"),
            [_cells(plan, screen) for plan in plans],
        )
    for plan in plans:
        name = plan.policy.name
        if plan.problem:
            screen.write_line(f"{name}: {drop_subject(name, plan.problem)}")
        if not plan.why:
            continue  # the table could not be read
        if screen.terminal:
            held = f"; rows are held{_by_holds(plan.holds)}" if _holds_some(plan) else ""
            screen.write_line(f"{name}: {plan.strategy}, {_details(plan)}{held}")
        else:
            screen.write_line(_sentence(plan, screen))
        for statement in plan.index:
            screen.write_line(f"{name}: an index on the age column is missing: {statement};")


def _cells(plan: Plan, screen: Screen) -> tuple[str, ...]:
    return (
        plan.policy.name,
        format_days(plan.policy.keep),
        screen.format_time(plan.horizon),
        f"{_about(plan)}{plan.rows:,}" if plan.why else "-",
        _share(plan),
        _count(plan.held) if plan.holds else "-",
        screen.format_time(plan.oldest),
    )


def _sentence(plan: Plan, screen: Screen) -> str:
    would = "without that, it would delete" if plan.problem else "would delete"
    share = f", about {_share(plan)} of the table" if plan.table_rows else ""
    oldest = f"; oldest from {screen.format_time(plan.oldest)}" if plan.oldest else ""
    held = f"; {_count(plan.held)} more held{_by_holds(plan.holds)}" if _holds_some(plan) else ""
    return (
        f"{plan.policy.name}: {would} {_about(plan)}{format_rows(plan.rows)} ({plan.strategy}){share}, older"
        f" than {screen.format_time(plan.horizon)} (kept {format_days(plan.policy.keep)}){oldest}{held};"
        f" {_details(plan)}"
    )


def _details(plan: Plan) -> str:
    referenced = ageless = ""
    if plan.referenced != 0:
        referenced = f"; {_count(plan.referenced)} kept because other rows refer to them"
    if plan.ageless:
        ageless = f"; {plan.ageless:,} kept without an age"
    size = f"about {format_bytes(plan.bytes)} in {format_duration(plan.duration)}"
    return f"{size}; {plan.why}{referenced}{ageless}"


def _holds_some(plan: Plan) -> bool:
    return bool(plan.holds) and plan.held != 0


def _by_holds(holds: Sequence[Hold]) -> str:
    names = ", ".join(str(hold.id) for hold in holds[:_MAX_HOLDS])
    more = f" and {len(holds) - _MAX_HOLDS} more" if len(holds) > _MAX_HOLDS else ""
    return f" by hold{'' if len(holds) == 1 else 's'} {names}{more}"


def _count(rows: int | None) -> str:
    return "some" if rows is None else f"{rows:,}"


def _about(plan: Plan) -> str:
    return "" if plan.exact else "about "


def _share(plan: Plan) -> str:
    return f"{plan.rows / plan.table_rows:.1%}" if plan.table_rows else "-"


def _document(plan: Plan) -> dict[str, object]:
    return {
        "table": plan.policy.name,
        "age_column": plan.policy.age_column,
        "keep_seconds": plan.policy.keep,
        **select_fields(plan, "horizon", "rows", "exact", "bytes"),
        "seconds": round(plan.duration.total_seconds(), 1),
        **select_fields(plan, "table_rows", "oldest", "strategy", "why", "partitions", "index"),
        "holds": [hold.id for hold in plan.holds],
        **select_fields(plan, "held", "referenced", "ageless", "problem"),
    }

"""`retention plan`: what a run would delete now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.cli._screen import Screen, days, duration, unnamed, volume

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import Hold, Plan

_HOLDS_SHOWN: Final = 5


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("plan", help="what a run would delete now; nothing is changed")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="only these policies; default all")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=execute)


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Show the plan; 1 if a policy cannot be carried out."""
    plans = await keeper.retention.plan(arguments.tables or None)
    show_plans(plans, screen)
    return int(any(plan.problem for plan in plans))


def show_plans(plans: Sequence[Plan], screen: Screen) -> None:
    """Show what runs would delete.

    Args:
        plans: One for each policy.
        screen: Where.
    """
    if screen.json:
        screen.document([_document(plan) for plan in plans])
        return
    if screen.terminal:
        screen.table(
            "What a run would delete now",
            ("Table", "Kept", "Older than", "#Rows", "#Of all", "#Held", "Oldest"),
            [_cells(plan, screen) for plan in plans],
        )
    for plan in plans:
        if plan.problem:
            screen.say(f"{plan.policy.name}: {unnamed(plan.policy.name, plan.problem)}")
        if not plan.why:
            continue  # it could not be looked at
        if screen.terminal:
            held = f"; rows are held{_by(plan.holds)}" if _holds_some(plan) else ""
            screen.say(f"{plan.policy.name}: {_way(plan)}{held}")
        else:
            screen.say(_sentence(plan, screen))
        for statement in plan.index:
            screen.say(f"{plan.policy.name}: an index of the ages is missing: {statement};")


def _cells(plan: Plan, screen: Screen) -> tuple[str, ...]:
    return (
        plan.policy.name,
        days(plan.policy.keep),
        screen.time(plan.horizon),
        _rows(plan) if plan.why else "-",
        _share(plan),
        _held(plan) if plan.holds else "-",
        screen.time(plan.oldest),
    )


def _sentence(plan: Plan, screen: Screen) -> str:
    share = f" (about {_share(plan)} of the table)" if plan.table_rows else ""
    oldest = f", the oldest of {screen.time(plan.oldest)}" if plan.oldest else ""
    held = f"; {_held(plan)} more are held{_by(plan.holds)}" if _holds_some(plan) else ""
    but = "but for that, " if plan.problem else ""
    return (
        f"{plan.policy.name}: {but}{_rows(plan)} rows would go{share}, older than {screen.time(plan.horizon)}"
        f" ({days(plan.policy.keep)}){oldest}{held}; {_way(plan)}"
    )


def _way(plan: Plan) -> str:
    ageless = f"; {plan.ageless:,} without an age stay" if plan.ageless else ""
    referenced = (
        "" if plan.referenced == 0 else f"; {_count(plan.referenced)} stay while others refer to them"
    )
    about = f"about {volume(plan.bytes)} in {duration(plan.takes)}"
    return f"{about}, by {plan.strategy}, because {plan.why}{referenced}{ageless}"


def _holds_some(plan: Plan) -> bool:
    return bool(plan.holds) and plan.held != 0


def _by(holds: Sequence[Hold]) -> str:
    """Name the holds that are in force, the first ones of many."""
    names = ", ".join(str(hold.id) for hold in holds[:_HOLDS_SHOWN])
    more = f" and {len(holds) - _HOLDS_SHOWN} more" if len(holds) > _HOLDS_SHOWN else ""
    return f" by hold{'' if len(holds) == 1 else 's'} {names}{more}"


def _held(plan: Plan) -> str:
    return _count(plan.held)


def _count(rows: int | None) -> str:
    return "some" if rows is None else f"{rows:,}"


def _rows(plan: Plan) -> str:
    return f"{plan.rows:,}" if plan.exact else f"about {plan.rows:,}"


def _share(plan: Plan) -> str:
    return f"{plan.rows / plan.table_rows:.1%}" if plan.table_rows else "-"


def _document(plan: Plan) -> dict[str, object]:
    return {
        "table": plan.policy.name,
        "age_column": plan.policy.age_column,
        "keep_seconds": plan.policy.keep,
        "horizon": plan.horizon,
        "rows": plan.rows,
        "exact": plan.exact,
        "bytes": plan.bytes,
        "seconds": round(plan.takes.total_seconds(), 1),
        "table_rows": plan.table_rows,
        "oldest": plan.oldest,
        "strategy": plan.strategy,
        "why": plan.why,
        "partitions": plan.partitions,
        "index": plan.index,
        "holds": [hold.id for hold in plan.holds],
        "held": plan.held,
        "referenced": plan.referenced,
        "ageless": plan.ageless,
        "problem": plan.problem,
    }

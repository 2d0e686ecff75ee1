"""`retention hold`: protects rows from deletion, lists the holds and releases them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from watchkeeper.cli._command import Command, Group, add_by, add_json, add_table
from watchkeeper.cli._screen import select_fields
from watchkeeper.cli._text import format_rows
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention import Condition

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import Hold


def _add_hold(parser: argparse.ArgumentParser) -> None:
    rows = parser.add_mutually_exclusive_group(required=True)
    rows.add_argument(
        "--where",
        action="append",
        metavar="CONDITION",
        help="such as 'customer_id = 42' or \"id in (a, b)\"; repeat it: rows must match all of them",
    )
    rows.add_argument("--all", action="store_true", help="hold every row")
    parser.add_argument("--reason", required=True, help="why the rows are held")
    add_by(parser, option="--owner")
    parser.add_argument("--until", metavar="TIME", help="expiry as a date or ISO 8601 time: 2027-01-31")


async def _execute_add(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    operator = keeper.retention.operator
    until = _parse_time(arguments.until, keeper.settings.retention_timezone) if arguments.until else None
    conditions = [Condition.parse(text) for text in arguments.where or ()]
    hold = await operator.hold(
        arguments.table, conditions, reason=arguments.reason, owner=arguments.owner, until=until
    )
    rows = await operator.count_held(hold)
    if screen.json:
        screen.write_json([{**_to_json(hold), "rows": rows}])
    else:
        screen.write_line(f"{_format_hold(hold, screen)}; {_describe_count(rows)}")
    return 0


def _add_ended(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ended", action="store_true", help="include holds that expired or were released")


async def _execute_list(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    _show(await keeper.retention.operator.holds(ended=arguments.ended), screen, ended=arguments.ended)
    return 0


def _add_number(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hold", type=int, metavar="NUMBER", help="number of the hold, from `hold list`")


async def _execute_release(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    released = await keeper.retention.operator.release(arguments.hold, released_by=arguments.by)
    _show([released], screen, ended=True)
    return 0


HOLD: Final = Group(
    name="hold",
    help="protect rows from deletion",
    commands=(
        Command(
            name="add",
            help="protect rows, regardless of their policy",
            arguments=(add_table, _add_hold, add_json),
            execute=_execute_add,
        ),
        Command(
            name="list",
            help="list holds (only active ones by default)",
            arguments=(_add_ended, add_json),
            execute=_execute_list,
        ),
        Command(
            name="release",
            help="release a hold; the next run deletes its rows if they are past the horizon",
            arguments=(_add_number, add_by, add_json),
            execute=_execute_release,
        ),
    ),
)


def _describe_count(rows: int | None) -> str:
    if rows is None:
        return "it matches too many rows to count"
    return f"it holds {format_rows(rows)} now" if rows else "no rows match: check the condition"


def _parse_time(text: str, zone: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--until takes a time such as 2027-01-31, not {text!r}.") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=ZoneInfo(zone))


def _show(holds: Sequence[Hold], screen: Screen, *, ended: bool) -> None:
    if screen.json:
        screen.write_json([_to_json(hold) for hold in holds])
    elif screen.terminal:
        released = ["Released"] if ended else []
        screen.write_table(
            "Holds",
            ("#Hold", "Table", "Since", "Until", "Owner", *released, "Rows and reason"),
            [
                (
                    str(hold.id),
                    hold.table_name,
                    screen.format_time(hold.created_at),
                    screen.format_time(hold.until),
                    hold.owner,
                    *([screen.format_time(hold.released_at)] if ended else []),
                    f"{hold}: {hold.reason}",
                )
                for hold in holds
            ],
        )
    else:
        for hold in holds:
            screen.write_line(_format_hold(hold, screen))


def _format_hold(hold: Hold, screen: Screen) -> str:
    until = f" until {screen.format_time(hold.until)}" if hold.until else ""
    released = ""
    if hold.released_at:
        released = f"; released {screen.format_time(hold.released_at)} by {hold.released_by}"
    return (
        f"hold {hold.id} on {hold.table_name}: {hold}; since {screen.format_time(hold.created_at)}{until},"
        f" by {hold.owner}: {hold.reason}{released}"
    )


def _to_json(hold: Hold) -> dict[str, object]:
    return {
        "hold": hold.id,
        "table": hold.table_name,
        "conditions": [select_fields(one, "column", "operator", "values") for one in hold.conditions],
        **select_fields(hold, "reason", "owner", "created_at", "until", "released_at", "released_by"),
    }

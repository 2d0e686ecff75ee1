"""`retention hold`: rows that stay although their policy says otherwise."""

from __future__ import annotations

import getpass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention import Condition

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.retention import Hold


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the commands."""
    text = "rows that stay although their policy says otherwise"
    group = actions.add_parser("hold", help=text, description=f"{text[0].upper()}{text[1:]}.")
    commands = group.add_subparsers(metavar="COMMAND", required=True)

    parser = commands.add_parser("add", help="hold rows, from now on")
    parser.add_argument("table", metavar="TABLE", help="name of the policy")
    rows = parser.add_mutually_exclusive_group(required=True)
    rows.add_argument(
        "--where",
        action="append",
        metavar="CONDITION",
        help="such as 'customer_id = 42' or \"id in (a, b)\"; a row that meets all of them is held",
    )
    rows.add_argument("--all", action="store_true", help="hold every row")
    parser.add_argument("--reason", required=True, help="why, for whoever finds it")
    parser.add_argument("--owner", default=whoever(), help="who wants it; default: the account that asks")
    parser.add_argument(
        "--until", metavar="TIME", help="when it ends by itself, as 2027-01-31 or with a time"
    )
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=_add)

    parser = commands.add_parser("list", help="the holds that are in force")
    parser.add_argument("--ended", action="store_true", help="also those that are over")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=_list)

    parser = commands.add_parser("release", help="end a hold; its rows go with the next run that is due")
    parser.add_argument("hold", type=int, metavar="NUMBER", help="of the hold, as the list has it")
    parser.add_argument("--by", default=whoever(), help="who releases it; default: the account that asks")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=_release)


async def _add(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    retention = keeper.retention
    until = _time(arguments.until, keeper.settings.retention_timezone) if arguments.until else None
    conditions = [Condition.parse(text) for text in arguments.where or ()]
    hold = await retention.operator.hold(
        arguments.table, conditions, reason=arguments.reason, owner=arguments.owner, until=until
    )
    rows = await retention.operator.count_held(hold)
    if screen.json:
        screen.document([{**_document(hold), "rows": rows}])
    else:
        screen.say(f"{_sentence(hold, screen)}; {_holds(rows)}")
    return 0


def _holds(rows: int | None) -> str:
    if rows is None:
        return "it holds some rows, which take too long to count"
    return f"it holds {rows:,} rows now" if rows else "it holds no row now: is that meant?"


async def _list(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    _show(await keeper.retention.operator.holds(ended=arguments.ended), screen, ended=arguments.ended)
    return 0


async def _release(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    ended = await keeper.retention.operator.release(arguments.hold, released_by=arguments.by)
    _show([ended], screen, ended=True)
    return 0


def whoever() -> str:
    """Return the name of the account that asks."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return "operator"


def _time(text: str, zone: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--until takes a time such as 2027-01-31, not {text!r}.") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=ZoneInfo(zone))


def _show(holds: Sequence[Hold], screen: Screen, *, ended: bool) -> None:
    if screen.json:
        screen.document([_document(hold) for hold in holds])
    elif screen.terminal:
        screen.table(
            "Holds",
            (
                "#Hold",
                "Table",
                "Since",
                "Until",
                "Owner",
                *(["Released"] if ended else []),
                "Rows and reason",
            ),
            [
                (
                    str(hold.id),
                    hold.table_name,
                    screen.time(hold.created_at),
                    screen.time(hold.until),
                    hold.owner,
                    *([screen.time(hold.released_at)] if ended else []),
                    f"{hold}: {hold.reason}",
                )
                for hold in holds
            ],
        )
    else:
        for hold in holds:
            screen.say(_sentence(hold, screen))


def _sentence(hold: Hold, screen: Screen) -> str:
    end = f" until {screen.time(hold.until)}" if hold.until else ""
    over = f", released {screen.time(hold.released_at)} by {hold.released_by}" if hold.released_at else ""
    return (
        f"hold {hold.id} on {hold.table_name}: {hold}; since {screen.time(hold.created_at)}{end},"
        f" wanted by {hold.owner}: {hold.reason}{over}"
    )


def _document(hold: Hold) -> dict[str, object]:
    return {
        "hold": hold.id,
        "table": hold.table_name,
        "conditions": [
            {"column": one.column, "operator": one.operator, "values": one.values} for one in hold.conditions
        ],
        "reason": hold.reason,
        "owner": hold.owner,
        "created_at": hold.created_at,
        "until": hold.until,
        "released_at": hold.released_at,
        "released_by": hold.released_by,
    }

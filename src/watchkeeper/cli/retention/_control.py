"""What the commands share that have an operator say a word to the runs of a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from watchkeeper.cli.retention._hold import whoever

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


def add_word(
    actions: argparse._SubParsersAction[Any],
    name: str,
    text: str,
    execute: Callable[[Watchkeeper, argparse.Namespace, Screen], Awaitable[int]],
) -> None:
    """Describe such a command.

    Args:
        actions: Where it belongs.
        name: Its name.
        text: What it does.
        execute: Does it.
    """
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("table", metavar="TABLE", help="name of the policy")
    parser.add_argument("--by", default=whoever(), help="who wants that; default: the account that asks")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=execute)


def show_word(
    screen: Screen, arguments: argparse.Namespace, status: str, run: int | None, consequence: str
) -> None:
    """Show what was said.

    Args:
        screen: Where.
        arguments: Of the command.
        status: What became of the policy or its run.
        run: The run that is going on; None if there is none.
        consequence: What comes of it.
    """
    if screen.json:
        screen.document({"table": arguments.table, "status": status, "run": run, "by": arguments.by})
    else:
        screen.say(f"{arguments.table}: {status} by {arguments.by}; {consequence}")

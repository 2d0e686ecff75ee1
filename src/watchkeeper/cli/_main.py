"""`watchkeeper GROUP COMMAND`: parses the command line, opens the keeper and executes one command.

Exit codes: 0 success; 1 a failure; 2 a wrong command line or configuration; 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Final

import psycopg

from watchkeeper.cli._app import VARIABLE, find_keeper
from watchkeeper.cli._command import Command, Group
from watchkeeper.cli._screen import Screen, open_screen
from watchkeeper.cli._text import printable
from watchkeeper.cli.audit._list import LIST
from watchkeeper.cli.db._dump import DUMP
from watchkeeper.cli.db._migrate import MIGRATE
from watchkeeper.cli.db._restore import RESTORE_DATABASE
from watchkeeper.cli.db._status import DATABASE_STATUS
from watchkeeper.cli.retention._control import CANCEL, PAUSE, RESUME
from watchkeeper.cli.retention._history import HISTORY
from watchkeeper.cli.retention._hold import HOLD
from watchkeeper.cli.retention._plan import PLAN
from watchkeeper.cli.retention._restore import RESTORE
from watchkeeper.cli.retention._run import RUN
from watchkeeper.cli.retention._status import STATUS
from watchkeeper.database._connection import one_line
from watchkeeper.exceptions import ConfigurationError, WatchkeeperError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from watchkeeper.keeper import Watchkeeper

GROUPS: Final = (
    Group(
        name="retention",
        help="manage data retention",
        commands=(PLAN, RUN, STATUS, HISTORY, PAUSE, RESUME, CANCEL, HOLD, RESTORE),
    ),
    Group(name="audit", help="the record of who did what", commands=(LIST,)),
    Group(
        name="db",
        help="the database: migrations, backup and restore",
        commands=(DATABASE_STATUS, MIGRATE, DUMP, RESTORE_DATABASE),
    ),
)

_FAILED: Final = 1
_USAGE: Final = 2
_INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None, keeper: Watchkeeper | None = None) -> int:
    """Execute one command and return its exit code.

    Args:
        argv: The arguments; default those of the process.
        keeper: The service's keeper, if another program calls this; default: the one that `--app` names.
    """
    parser = _make_parser(has_keeper=keeper is not None)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message
        return stop.code if isinstance(stop.code, int) else _USAGE
    try:
        chosen = find_keeper(arguments.app) if keeper is None else keeper
        with open_screen(zone=chosen.settings.retention_timezone, json=arguments.json) as screen:
            return asyncio.run(_execute(chosen, arguments, screen))
    except KeyboardInterrupt:
        return _fail(parser.prog, "interrupted", _INTERRUPTED)
    except ConfigurationError as error:
        return _fail(parser.prog, str(error), _USAGE)
    except WatchkeeperError as error:
        return _fail(parser.prog, str(error), _FAILED)
    except psycopg.Error as error:
        return _fail(parser.prog, f"Database error: {one_line(error)}", _FAILED)


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    if screen.terminal:
        # The command's own output is enough; JSON lines in between would clutter the display.
        keeper.logging.set_level("fatal")
    # The pool's warnings are repeated in the error that the command ends with.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    command: Command = arguments.command
    async with keeper.running(migrate=command.migrate):
        return await command.execute(keeper, arguments, screen)


def _make_parser(*, has_keeper: bool) -> argparse.ArgumentParser:
    program = "keep" if has_keeper else "watchkeeper"
    app = "" if has_keeper else "[--app MODULE:ATTRIBUTE] "
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} {app}GROUP COMMAND [OPTIONS]",
        description=f"Operate a service that Watchkeeper monitors.\n\n{_list_commands()}",
        epilog=f"`{program} GROUP COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(app=None, json=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    if not has_keeper:
        parser.add_argument(
            "--app",
            metavar="MODULE:ATTRIBUTE",
            help=f"the service's keeper, such as realestate.monitoring:keeper (default: {VARIABLE})",
        )
    _add(parser, GROUPS, "GROUP", help_=argparse.SUPPRESS)
    return parser


class _Version(argparse.Action):
    """Prints the installed version, which is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(f"watchkeeper {metadata.version('watchkeeper')}\n")
        parser.exit()


def _add(
    parser: argparse.ArgumentParser,
    commands: Iterable[Command | Group],
    metavar: str,
    *,
    help_: str | None = None,
) -> None:
    subparsers = parser.add_subparsers(metavar=metavar, prog=parser.prog, required=True, help=help_)
    for command in commands:
        added = subparsers.add_parser(command.name, help=command.help, description=_sentence(command.help))
        if isinstance(command, Group):
            _add(added, command.commands, "COMMAND")
        else:
            for add_argument in command.arguments:
                add_argument(added)
            added.set_defaults(command=command)


def _list_commands() -> str:
    return "\n\n".join(
        "\n".join(
            [
                f"{group.name}: {group.help}",
                *(f"  {name:<14} {text}" for name, text in _names(group.commands)),
            ]
        )
        for group in GROUPS
    )


def _names(commands: Iterable[Command | Group]) -> Iterator[tuple[str, str]]:
    for command in commands:
        if isinstance(command, Group):
            yield from ((f"{command.name} {name}", text) for name, text in _names(command.commands))
        else:
            yield command.name, command.help


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _fail(program: str, message: str, code: int) -> int:
    sys.stderr.write(f"{program}: {printable(message)}\n")
    return code

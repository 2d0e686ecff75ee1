"""`watchkeeper retention | audit | db`: reads the command line, opens the keeper and runs one command.

Exit codes: 0 all is well; 1 something failed, such as one policy; 2 the command was not understood. Stdout
carries the command's answer and nothing else; the keeper's own lines go to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Final

import psycopg

from watchkeeper.cli._app import find_keeper
from watchkeeper.cli._screen import Screen, open_screen, printable
from watchkeeper.cli.audit import _list
from watchkeeper.cli.db import _dump, _migrate
from watchkeeper.cli.db import _restore as _db_restore
from watchkeeper.cli.db import _status as _db_status
from watchkeeper.cli.retention import (
    _cancel,
    _history,
    _hold,
    _pause,
    _plan,
    _restore,
    _resume,
    _run,
    _status,
)
from watchkeeper.exceptions import ConfigurationError, WatchkeeperError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from watchkeeper.keeper import Watchkeeper

FAILED: Final = 1
USAGE: Final = 2

_GROUPS: Final = {
    "retention": (
        "what is kept how long, and the runs that delete the rest",
        (
            _plan,
            _run,
            _status,
            _history,
            _pause,
            _resume,
            _cancel,
            _hold,
            _restore,
        ),
    ),
    "audit": ("the record of who did what", (_list,)),
    "db": ("the database: migrations, backup and restore", (_db_status, _migrate, _dump, _db_restore)),
}


def main(argv: Sequence[str] | None = None, keeper: Watchkeeper | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The arguments; default the process's.
        keeper: The service's keeper, when a program of its own calls this; default: what `--app` names.
    """
    parser = _make_parser(given=keeper is not None)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has written what there is to say
        return stop.code if isinstance(stop.code, int) else USAGE
    try:
        chosen = find_keeper(arguments.app) if keeper is None else keeper
        with open_screen(zone=chosen.settings.retention_timezone, json=arguments.json) as screen:
            return asyncio.run(_execute(chosen, arguments, screen))
    except KeyboardInterrupt:
        return _complain(parser.prog, "stopped", 130)
    except ConfigurationError as error:
        return _complain(parser.prog, str(error), USAGE)
    except WatchkeeperError as error:
        return _complain(parser.prog, str(error), FAILED)
    except psycopg.Error as error:
        return _complain(parser.prog, f"The database refused: {' '.join(str(error).split())}", FAILED)


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    if screen.terminal:
        # Its own words are on the screen already; a line of JSON between them would only disturb.
        keeper.logging.set_level("fatal")
    # Its complaints come as the sentence that the command ends with.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    async with keeper.running(migrate=arguments.migrate):
        code: int = await arguments.execute(keeper, arguments, screen)
    return code


def _make_parser(*, given: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keep" if given else "watchkeeper",
        description="Look after a service that Watchkeeper keeps: its retention, audit log and database.",
    )
    parser.set_defaults(app=None, json=False, migrate=True)
    if not given:
        parser.add_argument(
            "--app",
            metavar="MODULE:ATTRIBUTE",
            help="where the service's keeper is, such as realestate.monitoring:keeper"
            " (default: WATCHKEEPER_APP)",
        )
    groups = parser.add_subparsers(metavar="GROUP", required=True)
    for name, (text, commands) in _GROUPS.items():
        group = groups.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        actions = group.add_subparsers(metavar="COMMAND", required=True)
        for command in commands:
            command.add(actions)
    return parser


def _complain(program: str, sentence: str, code: int) -> int:
    sys.stderr.write(f"{program}: {printable(sentence)}\n")
    return code

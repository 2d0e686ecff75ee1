"""What a command consists of, and the arguments that several commands share."""

from __future__ import annotations

import argparse
import getpass
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper

_LARGEST_LIMIT: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command: its help text begins in lower case and has no full stop; `execute` returns the exit code."""

    name: str
    help: str
    execute: Callable[[Watchkeeper, argparse.Namespace, Screen], Awaitable[int]]
    arguments: tuple[Callable[[argparse.ArgumentParser], None], ...] = ()
    migrate: bool = True  # whether the database is migrated first


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Commands whose names begin with that of the group."""

    name: str
    help: str
    commands: tuple[Command | Group, ...]


def add_tables(parser: argparse.ArgumentParser) -> None:
    """Add the names of policies; default all."""
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="only these policies; default all")


def add_table(parser: argparse.ArgumentParser) -> None:
    """Add the name of one policy."""
    parser.add_argument("table", metavar="TABLE", help="name of the policy")


def add_by(parser: argparse.ArgumentParser, *, option: str = "--by") -> None:
    """Add the name under which the command is audited."""
    parser.add_argument(
        option, default=account_name(), metavar="NAME", help="name in the audit log; default: your account"
    )


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add how many entries are shown."""
    parser.add_argument("--limit", type=_limit, default=20, metavar="N", help="how many; default 20")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the switch for JSON."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Add the switch that skips the question; `require_yes` checks it."""
    parser.add_argument("--yes", action="store_true", help="do not ask; required without a terminal")


def require_yes(arguments: argparse.Namespace, screen: Screen, action: str) -> None:
    """Raise ConfigurationError where the operator has to confirm and cannot be asked."""
    if not arguments.yes and not screen.terminal:
        raise ConfigurationError(f"There is no terminal to ask on: add --yes to {action}.")


def account_name() -> str:
    """Return the name of the account that runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return "operator"


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _LARGEST_LIMIT:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {_LARGEST_LIMIT}")
    return int(text)

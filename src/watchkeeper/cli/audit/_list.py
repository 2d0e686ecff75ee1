"""`audit list`: the latest entries of the audit log."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.audit import Entry, recent

if TYPE_CHECKING:
    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper

MOST: Final = 1000


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("list", help="the latest entries, the latest first")
    parser.add_argument("--limit", type=limited, default=20, metavar="N", help="how many; default 20")
    parser.add_argument("--entity", metavar="NAME", help="only entries of this entity, such as a table")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=execute)


async def execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    """Show the entries."""
    async with keeper.database.connection() as conn:
        entries = await recent(conn, arguments.limit, arguments.entity)
    if screen.json:
        screen.document([_document(entry) for entry in entries])
    elif screen.terminal:
        screen.table(
            "Audit log",
            ("#Id", "When", "Who", "Did", "To", "Payload"),
            [(*_cells(entry, screen), _brief(entry.payload)) for entry in entries],
        )
    else:
        for entry in entries:
            payload = json.dumps(entry.payload, ensure_ascii=False)
            screen.say(" ".join((*_cells(entry, screen), payload)))
    return 0


def limited(text: str) -> int:
    """Read how many entries are wanted."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"takes a number from 1 to {MOST}")
    return int(text)


def _cells(entry: Entry, screen: Screen) -> tuple[str, ...]:
    return (
        str(entry.id),
        screen.time(entry.created_at),
        f"{entry.actor_type}:{entry.actor_id}",
        entry.action,
        entry.entity if entry.entity_id is None else f"{entry.entity}:{entry.entity_id}",
    )


def _brief(payload: dict[str, Any]) -> str:
    """Return it as one line, the short things first, so that many of them fit."""
    plain = [f"{key}={value}" for key, value in payload.items() if not isinstance(value, (dict, list))]
    return " ".join(sorted(plain, key=len))


def _document(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.id,
        "created_at": entry.created_at,
        "actor_type": entry.actor_type,
        "actor_id": entry.actor_id,
        "action": entry.action,
        "entity": entry.entity,
        "entity_id": entry.entity_id,
        "payload": entry.payload,
    }

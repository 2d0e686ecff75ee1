"""`audit list`: shows the latest entries of the audit log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.audit import Entry, recent
from watchkeeper.cli._command import Command, add_json, add_limit
from watchkeeper.cli._screen import select_fields

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper


def _add_entity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entity", metavar="NAME", help="only entries of this entity, such as a table")


async def _execute(keeper: Watchkeeper, arguments: argparse.Namespace, screen: Screen) -> int:
    async with keeper.database.connection() as conn:
        entries = await recent(conn, arguments.limit, arguments.entity)
    if screen.json:
        screen.write_json([_document(entry) for entry in entries])
    elif screen.terminal:
        screen.write_table(
            "Audit log",
            ("#Id", "Time", "Actor", "Action", "Entity", "Payload"),
            [(*_cells(entry, screen), _summarize(entry.payload)) for entry in entries],
        )
    else:
        for entry in entries:
            payload = json.dumps(entry.payload, ensure_ascii=False)
            screen.write_line(" ".join((*_cells(entry, screen), payload)))
    return 0


LIST: Final = Command(
    name="list",
    help="show the latest entries, newest first",
    arguments=(add_limit, _add_entity, add_json),
    execute=_execute,
)


def _cells(entry: Entry, screen: Screen) -> tuple[str, ...]:
    return (
        str(entry.id),
        screen.format_time(entry.created_at),
        f"{entry.actor_type}:{entry.actor_id}",
        entry.action,
        entry.entity if entry.entity_id is None else f"{entry.entity}:{entry.entity_id}",
    )


def _summarize(payload: dict[str, Any]) -> str:
    """Return the plain values on one line, short ones first, so that many of them fit."""
    plain = [f"{key}={value}" for key, value in payload.items() if not isinstance(value, (dict, list))]
    return " ".join(sorted(plain, key=len))


def _document(entry: Entry) -> dict[str, object]:
    actor = ("actor_type", "actor_id")
    return select_fields(entry, "id", "created_at", *actor, "action", "entity", "entity_id", "payload")

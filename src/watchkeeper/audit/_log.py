"""Appends to the audit log and reads its latest entries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from psycopg.rows import class_row, scalar_row

from watchkeeper.audit._payload import encode_payload
from watchkeeper.database import Queries
from watchkeeper.exceptions import AuditError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from psycopg import AsyncConnection

ActorType = Literal["user", "agent", "system"]

QUERIES: Final = Queries.load("watchkeeper.audit", "audit")
_ACTION: Final = re.compile(r"[a-z][a-z0-9._-]{0,99}")
_NOT_STORED: Final = re.compile("[\0\ud800-\udfff]")
_MAX_CHARACTERS: Final = 255
_MAX_PAYLOAD_BYTES: Final = 256 * 1024
_MAX_ENTRIES: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One entry of the audit log; its fields are those of `append`.

    `id` rises with each entry; `created_at` is the start of the transaction that wrote it.
    """

    id: int
    actor_type: ActorType
    actor_id: str
    action: str
    entity: str
    entity_id: str | None
    payload: dict[str, Any]
    created_at: datetime


async def append(  # noqa: PLR0913  # the entry's fields, all named
    conn: AsyncConnection[Any],
    *,
    actor_type: ActorType,
    actor_id: str,
    action: str,
    entity: str,
    entity_id: str | None = None,
    payload: Mapping[str, object] | None = None,
) -> int:
    """Append one entry in the caller's transaction, and return its id; the commit makes it permanent.

    Args:
        conn: The connection of the transaction that does what the entry describes.
        actor_type: The kind of actor: user, agent or system.
        actor_id: The actor; 1 to 255 characters.
        action: What was done, such as `retention.prune`: at most 100 lower-case letters, digits, dots,
            hyphens and underscores, starting with a letter.
        entity: The kind of thing it was done to, such as a table; 1 to 255 characters.
        entity_id: The id of the affected thing; 1 to 255 characters, None if there is no single one.
        payload: Further details, at most 256 KiB as JSON. They are not redacted.

    Raises:
        AuditError: An argument is invalid (nothing was sent), or the database discarded the entry.
    """
    if actor_type not in get_args(ActorType):
        raise AuditError("actor_type must be one of user, agent and system.")
    if not isinstance(action, str) or not _ACTION.fullmatch(action):
        raise AuditError(
            "action takes 1 to 100 lower-case letters, digits, dots, hyphens and underscores, starting with a"
            " letter, such as listing.create."
        )
    _check_text("actor_id", actor_id)
    _check_text("entity", entity)
    if entity_id is not None:
        _check_text("entity_id", entity_id)
    encoded = encode_payload(payload or {})
    if len(encoded) > _MAX_PAYLOAD_BYTES:
        raise AuditError(
            f"payload is {len(encoded) // 1024} KiB of JSON, more than {_MAX_PAYLOAD_BYTES // 1024}: leave"
            " out what can be read elsewhere."
        )
    async with conn.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(
            QUERIES["append"],
            {
                "actor_type": actor_type,
                "actor_id": actor_id,
                "action": action,
                "entity": entity,
                "entity_id": entity_id,
                "payload": encoded,
            },
        )
        entry_id = await cursor.fetchone()
    if not isinstance(entry_id, int):
        raise AuditError(
            "The database stored no entry: a rule or a trigger on audit_log discards what is inserted."
            " Remove it."
        )
    return entry_id


async def recent(conn: AsyncConnection[Any], limit: int = 50, entity: str | None = None) -> list[Entry]:
    """Return the latest entries, newest first.

    Args:
        conn: A connection to the service's database.
        limit: The largest number of entries, 1 to 1000; default 50.
        entity: Only entries of this entity; default all.
    """
    if not 1 <= limit <= _MAX_ENTRIES:
        raise AuditError(f"limit takes a number from 1 to {_MAX_ENTRIES}.")
    query = QUERIES["recent" if entity is None else "recent_of_entity"]
    async with conn.cursor(row_factory=class_row(Entry)) as cursor:
        await cursor.execute(query, {"limit": limit, "entity": entity})
        return await cursor.fetchall()


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_CHARACTERS:
        raise AuditError(f"{field} takes text of 1 to {_MAX_CHARACTERS} characters.")
    if _NOT_STORED.search(value):
        raise AuditError(
            f"{field} contains a NUL character or a lone surrogate, which PostgreSQL does not store."
        )

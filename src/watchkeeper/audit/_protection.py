"""Whether the database still keeps the audit log append-only.

Triggers stop everybody, the owner too, but the owner may drop them: PostgreSQL has nothing against its own
DDL. So what cannot be prevented is looked for.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from psycopg.rows import tuple_row

from watchkeeper.database import Queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import AsyncConnection

_QUERIES: Final = Queries.load("watchkeeper.audit", "audit")

# src/include/catalog/pg_trigger.h of PostgreSQL
_ROW, _BEFORE, _INSERT, _DELETE, _UPDATE, _TRUNCATE = 1, 2, 4, 8, 16, 32

_EXPECTED: Final = {
    "audit_log_append_only": _BEFORE | _UPDATE | _DELETE | _TRUNCATE,
    "audit_log_append_only_rows": _ROW | _BEFORE | _UPDATE | _DELETE,
}
# Of the body of audit_log_refuse(), as migration 0001 has it.
_REFUSAL: Final = "3513cc48208125bf53fab30639444148dc6380deada4fb83c657d121a49b90db"


async def protection(conn: AsyncConnection[Any]) -> list[str]:
    """Look for what weakens the protection of the audit log; any role may ask.

    Args:
        conn: Any connection.

    Returns:
        A sentence for each finding; empty as long as the log is as the migrations made it.
    """
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_QUERIES["table"])
        table = await cursor.fetchone()
        if table is None:
            return ["audit_log is gone, or this role does not see it."]
        await cursor.execute(_QUERIES["triggers"])
        triggers = {name: tuple(rest) for name, *rest in await cursor.fetchall()}
    return [*_of_table(*table), *_of_triggers(triggers), *_of_strangers(triggers)]


def _of_table(unlogged: bool, ruled: bool, filtered: bool) -> Iterator[str]:  # noqa: FBT001  # a row's columns
    if unlogged:
        yield "audit_log is UNLOGGED: a crash of the server would empty it."
    if ruled:
        yield "audit_log has a rule: it may turn what is written into something else, or nothing."
    if filtered:
        yield "audit_log has row level security: it may hide entries from those who read."


def _of_triggers(triggers: dict[str, tuple[Any, ...]]) -> Iterator[str]:
    for name, kind in _EXPECTED.items():
        if name not in triggers:
            yield f"The trigger {name} is gone: entries can be changed or removed."
            continue
        found, always, narrowed, source = triggers[name]
        if not always:
            yield f"The trigger {name} is not ENABLE ALWAYS: entries can be changed or removed."
        if found != kind or narrowed or hashlib.sha256(source.encode()).hexdigest() != _REFUSAL:
            yield f"The trigger {name} is not what the migrations made: it may let changes through."


def _of_strangers(triggers: dict[str, tuple[Any, ...]]) -> Iterator[str]:
    for name, (kind, *_) in triggers.items():
        if name not in _EXPECTED and kind & _BEFORE and kind & _INSERT:
            yield f"The trigger {name} comes before each INSERT: it may change or swallow entries."

"""Checks whether the audit log is still append-only: only its owner can drop the triggers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from psycopg.rows import tuple_row

from watchkeeper.audit._log import QUERIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import AsyncConnection


# src/include/catalog/pg_trigger.h of PostgreSQL
_ROW, _BEFORE, _INSERT, _DELETE, _UPDATE, _TRUNCATE = 1, 2, 4, 8, 16, 32

_EXPECTED: Final = {
    "audit_log_append_only": _BEFORE | _UPDATE | _DELETE | _TRUNCATE,
    "audit_log_append_only_rows": _ROW | _BEFORE | _UPDATE | _DELETE,
}
# SHA-256 of the body of audit_log_refuse() in migration 0001.
_REFUSAL: Final = "3513cc48208125bf53fab30639444148dc6380deada4fb83c657d121a49b90db"


async def protection(conn: AsyncConnection[Any]) -> list[str]:
    """Return a sentence for each way in which the audit log is not protected as the migrations left it."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(QUERIES["table"])
        table = await cursor.fetchone()
        if table is None:
            return ["audit_log does not exist, or this role does not see it."]
        await cursor.execute(QUERIES["triggers"])
        triggers = {name: tuple(rest) for name, *rest in await cursor.fetchall()}
    return [*_check_table(*table), *_check_triggers(triggers), *_check_added_triggers(triggers)]


def _check_table(unlogged: bool, ruled: bool, filtered: bool) -> Iterator[str]:  # noqa: FBT001  # a row's columns
    if unlogged:
        yield "audit_log is UNLOGGED: a crash of the server would empty it."
    if ruled:
        yield "audit_log has a rule, which may change or discard what is written."
    if filtered:
        yield "audit_log has row level security, which may hide entries from readers."


def _check_triggers(triggers: dict[str, tuple[Any, ...]]) -> Iterator[str]:
    for name, kind in _EXPECTED.items():
        if name not in triggers:
            yield f"The trigger {name} does not exist: entries can be changed or removed."
            continue
        found, always, narrowed, source = triggers[name]
        if not always:
            yield f"The trigger {name} is not ENABLE ALWAYS: entries can be changed or removed."
        if found != kind or narrowed or hashlib.sha256(source.encode()).hexdigest() != _REFUSAL:
            yield f"The trigger {name} differs from that of the migrations: it may let changes through."


def _check_added_triggers(triggers: dict[str, tuple[Any, ...]]) -> Iterator[str]:
    for name, (kind, *_) in triggers.items():
        if name not in _EXPECTED and kind & _BEFORE and kind & _INSERT:
            yield f"The trigger {name} runs before each INSERT: it may change or discard entries."

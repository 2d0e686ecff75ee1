"""How far the first pass of a run has come, so that the next one need not begin again.

What is deleted does not depend on it: a run that began in the middle goes over the whole table again. It
counts for the same way through the table only, and for the same files: one that was written anew (VACUUM
FULL, CLUSTER, TRUNCATE) has its rows at other places.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.run._sweep import AgeSpan, Span, Swept

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from watchkeeper.retention.ledger._ledger import Claim
    from watchkeeper.retention.table._target import Target

_AGE: Final = "age"
_PLACE: Final = "place"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Says how far the first pass has come.

    Args:
        way: Through the table: by age, or by place.
        files: The files that the table has, as one text.
    """

    way: str
    files: str

    def after(self, swept: Swept) -> str:
        """Return what the ledger keeps after a sweep, as JSON."""
        at = swept.covered.stop if swept.rest is None else swept.rest.start
        return json.dumps({"way": self.way, "filenode": self.files, "at": at})


async def find_cursor(
    conn: AsyncConnection[Any], claim: Claim, target: Target, span: Span
) -> tuple[Cursor, Span]:
    """Return the cursor of a run, and what its first pass has to go over.

    Args:
        conn: Any connection.
        claim: The run.
        target: The table.
        span: All of it, as the first pass would go over it.
    """
    parameters = {
        "oid": target.oid,
        "run": claim.id,
        "table": claim.table_name,
        "trigger": claim.trigger,
        "due_at": claim.due_at,
        "attempt": claim.attempt,
    }
    files, last = await fetch_row(conn, QUERIES["last_cursor"], parameters)
    cursor = Cursor(way=_AGE if isinstance(span, AgeSpan) else _PLACE, files=files)
    if last is None or (last["way"], last["filenode"]) != (cursor.way, files):
        return cursor, span
    return cursor, replace(span, start=last["at"])

"""How far the first pass of a run has come, so that the next attempt need not start over.

It is valid for the same kind of scan and the same files: VACUUM FULL and the like rewrite the table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.run._batch import AgeRange, BatchResult, Range

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from watchkeeper.retention._model import Claim
    from watchkeeper.retention.table._target import Target

_AGE: Final = "age"
_PLACE: Final = "place"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """The kind of scan and the table's files that a position belongs to."""

    way: str
    files: str

    def after(self, batch: BatchResult) -> str:
        """Return the position after a batch, as JSON for the ledger."""
        at = batch.covered.stop if batch.rest is None else batch.rest.start
        return json.dumps({"way": self.way, "filenode": self.files, "at": at})


async def find_cursor(
    conn: AsyncConnection[Any], claim: Claim, target: Target, range_: Range
) -> tuple[Cursor, Range]:
    """Return the cursor of a run, and the part of the range that its first pass must still scan."""
    parameters = {
        "oid": target.oid,
        "run": claim.id,
        "table": claim.table_name,
        "trigger": claim.trigger,
        "due_at": claim.due_at,
        "attempt": claim.attempt,
    }
    files, last = await fetch_row(conn, QUERIES["last_cursor"], parameters)
    cursor = Cursor(way=_AGE if isinstance(range_, AgeRange) else _PLACE, files=files)
    if last is None or (last["way"], last["filenode"]) != (cursor.way, files):
        return cursor, range_
    return cursor, replace(range_, start=last["at"])

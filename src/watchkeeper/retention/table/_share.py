"""How much of a table a run may delete: where most rows are suddenly old, an operator should look first.

A wrong clock, a wrong time zone, an import with old dates or a mistake in a policy all make most of a table
old at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import errors

from watchkeeper.exceptions import PolicyRefusedError
from watchkeeper.retention._queries import QUERIES, fetch_row

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention.table._sample import Sample
    from watchkeeper.retention.table._target import Target

FROM_ROWS: Final = 10_000
"""A run of no more rows than this may take any share: a small table is soon old as a whole."""

COUNT_TIMEOUT_MS: Final = 5000
"""Longest time to count; a table that takes longer is estimated."""

# A sample is believed without counting where it is this far below the limit.
_CLEARLY_BELOW: Final = 0.8


async def check_share(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, drawn: Sample, largest: float
) -> float:
    """Return about how many rows a run would delete; refuse the policy where that is too large a share."""
    rows, eligible, _ = drawn
    if largest >= 1.0 or eligible <= rows * largest * _CLEARLY_BELOW:
        return eligible
    about = "about "
    try:
        async with conn.transaction():
            await conn.execute(QUERIES["statement_timeout"], {"statement_ms": str(COUNT_TIMEOUT_MS)})
            rows, eligible = await fetch_row(conn, target.fill(QUERIES["count_share"]), {"horizon": horizon})
            about = ""
    except errors.QueryCanceled:
        pass
    if eligible > FROM_ROWS and eligible > rows * largest:
        enough = min(1.0, eligible / rows + 0.01)
        raise PolicyRefusedError(
            f"{target.name} is not pruned: {about}{eligible:,.0f} of its {rows:,.0f} rows"
            f" ({eligible / rows:.0%}) are older than {horizon:%Y-%m-%d %H:%M:%S %Z}, and a run may delete"
            f" {largest:.0%}. Check `retention plan {target.name}`; if that is intended, run it with"
            f" --allow-share {enough:.2f}, or raise WATCHKEEPER_RETENTION_MAX_SHARE."
        )
    return eligible

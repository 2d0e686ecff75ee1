"""Refuses a run that would delete too large a share of a table, until an operator has checked it.

A wrong clock or time zone, an import with old dates or a mistake in a policy make most rows old at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import errors

from watchkeeper.exceptions import PolicyRefusedError
from watchkeeper.retention._queries import QUERIES, fetch_row, milliseconds
from watchkeeper.retention.table._sample import COUNT_TIMEOUT

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention.table._sample import Sample
    from watchkeeper.retention.table._target import Target

LARGE_RUN_ROWS: Final = 10_000
"""A smaller run may delete any share: all of a small table soon becomes old."""

# A sample this far below the limit is trusted without counting.
_CLEARLY_BELOW: Final = 0.8


async def check_share(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, sampled: Sample, largest: float
) -> float:
    """Estimate how many rows a run would delete; raise PolicyRefusedError if there are too many."""
    rows, eligible, _ = sampled
    if largest >= 1.0 or eligible <= rows * largest * _CLEARLY_BELOW:
        return eligible
    about = "about "
    try:
        async with conn.transaction():
            await conn.execute(QUERIES["statement_timeout"], {"statement_ms": milliseconds(COUNT_TIMEOUT)})
            rows, eligible = await fetch_row(conn, target.fill(QUERIES["count_share"]), {"horizon": horizon})
            about = ""
    except errors.QueryCanceled:
        pass
    if eligible > LARGE_RUN_ROWS and eligible > rows * largest:
        enough = min(1.0, eligible / rows + 0.01)
        raise PolicyRefusedError(
            f"{target.name} is not pruned: {about}{eligible:,.0f} of its {rows:,.0f} rows"
            f" ({eligible / rows:.0%}) are older than {horizon:%Y-%m-%d %H:%M:%S %Z}, and a run may delete"
            f" {largest:.0%}. Check `retention plan {target.name}`; if that is intended, run it with"
            f" --allow-share {enough:.2f}, or raise WATCHKEEPER_RETENTION_MAX_SHARE."
        )
    return eligible

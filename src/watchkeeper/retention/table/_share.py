"""How much of a table a run may take: where most rows are suddenly old, a person should have a look first.

A clock that is wrong, a time zone that is not meant, an import with old dates, a policy with a slip in it:
all of them make most of a table old at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from psycopg import errors

from watchkeeper.exceptions import PolicyRefusedError
from watchkeeper.retention._queries import QUERIES, fetch_row

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention.table._target import Target

FROM_ROWS: Final = 10_000
"""A run of no more rows than this may take any share: a small table is soon old as a whole."""

COUNT_TIMEOUT_MS: Final = 5000
"""Longest time to count; a table that takes longer is estimated."""

_SAMPLED_BLOCKS: Final = 300
# What a sample says is believed without counting where it is this far below the limit.
_CLEAR: Final = 0.8


class Sample(NamedTuple):
    """What a few blocks, drawn at random, say of a table.

    Args:
        rows: About how many there are.
        eligible: About how many of them are.
        looked_up: About how many rows have to be looked at to find these, by their age.
    """

    rows: float
    eligible: float
    looked_up: float

    @property
    def share(self) -> float:
        """How much of the table has to be looked at."""
        return self.looked_up / max(self.rows, 1.0)


async def sample(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> Sample:
    """Look into a few blocks, drawn at random.

    Args:
        conn: Any connection.
        target: The table.
        horizon: Rows older than this are eligible.
    """
    percent = await sampled_percent(conn, target)
    # Rows that others refer to may be most of what is old and stay for years: each run looks them up again.
    query = "sample_old" if target.references else "sample"
    rows, eligible, *old = await fetch_row(
        conn, target.fill(QUERIES[query]), {"horizon": horizon, "percent": percent}
    )
    looked_up = old[0] if old else eligible
    return Sample(rows * 100 / percent, eligible * 100 / percent, looked_up * 100 / percent)


async def sampled_percent(conn: AsyncConnection[Any], target: Target) -> float:
    """Return how much of a table a sample looks at: a few hundred blocks, however many there are.

    Args:
        conn: Any connection.
        target: The table.
    """
    (blocks,) = await fetch_row(conn, QUERIES["blocks"], {"oid": target.oid})
    return min(100.0, 100.0 * _SAMPLED_BLOCKS / max(int(blocks), 1))


async def row_bytes(conn: AsyncConnection[Any], target: Target, drawn: Sample) -> float:
    """Return about how many bytes a row takes, with its share of the indexes and of what is stored apart.

    Args:
        conn: Any connection.
        target: The table.
        drawn: A sample of it.
    """
    (size,) = await fetch_row(conn, QUERIES["bytes"], {"oid": target.oid})
    return float(size) / drawn.rows if drawn.rows else 0.0


async def check_share(
    conn: AsyncConnection[Any], target: Target, horizon: datetime, drawn: Sample, largest: float
) -> float:
    """Refuse a run that would take more than its share of a table.

    Args:
        conn: The connection of a transaction of its own.
        target: The table.
        horizon: Rows older than this are eligible.
        drawn: A sample of it.
        largest: What a run may take; 1 is all.

    Returns:
        About how many rows it would take.

    Raises:
        PolicyRefusedError: It would take more.
    """
    rows, eligible, _ = drawn
    if largest >= 1.0 or eligible <= rows * largest * _CLEAR:
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
            f" ({eligible / rows:.0%}) are older than {horizon:%Y-%m-%d %H:%M:%S %Z}, and a run may take"
            f" {largest:.0%}. Look at `retention plan {target.name}`; if that is meant, run it with"
            f" --allow-share {enough:.2f}, or raise WATCHKEEPER_RETENTION_MAX_SHARE."
        )
    return eligible

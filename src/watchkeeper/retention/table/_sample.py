"""Estimates from a random sample of a table's blocks."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from watchkeeper.retention._queries import QUERIES, fetch_row

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention.table._target import Target

COUNT_TIMEOUT: Final = timedelta(seconds=5)
"""Maximum time to count rows; if counting takes longer, their number is estimated."""

_SAMPLED_BLOCKS: Final = 300


class Sample(NamedTuple):
    """Estimated numbers of rows in a table."""

    rows: float
    eligible: float
    read: float  # rows that an index scan has to read to find the eligible ones

    @property
    def share(self) -> float:
        """Share of the table that an index scan has to read."""
        return self.read / max(self.rows, 1.0)


async def sample(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> Sample:
    """Estimate how many rows a table has, and how many of them are eligible."""
    percent = await sample_percent(conn, target)
    # Rows that others refer to may be most of the old ones and stay for years: each run reads them again.
    query = "sample_old" if target.references else "sample"
    rows, eligible, *old = await fetch_row(
        conn, target.fill(QUERIES[query]), {"horizon": horizon, "percent": percent}
    )
    read = old[0] if old else eligible
    return Sample(rows * 100 / percent, eligible * 100 / percent, read * 100 / percent)


async def sample_percent(conn: AsyncConnection[Any], target: Target) -> float:
    """Return which percentage of the table is a few hundred blocks."""
    (blocks,) = await fetch_row(conn, QUERIES["blocks"], {"oid": target.oid})
    return min(100.0, 100.0 * _SAMPLED_BLOCKS / max(int(blocks), 1))


async def estimate_row_bytes(conn: AsyncConnection[Any], target: Target, sampled: Sample) -> float:
    """Estimate the size of a row, with its share of the indexes and of TOAST."""
    (size,) = await fetch_row(conn, QUERIES["bytes"], {"oid": target.oid})
    return float(size) / sampled.rows if sampled.rows else 0.0

"""What a few blocks of a table, drawn at random, say about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from watchkeeper.retention._queries import QUERIES, fetch_row

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection

    from watchkeeper.retention.table._target import Target

_SAMPLED_BLOCKS: Final = 300


class Sample(NamedTuple):
    """Estimates from a sample."""

    rows: float
    eligible: float
    looked_up: float  # rows that have to be read to find the eligible ones by their age

    @property
    def share(self) -> float:
        """Which share of the table has to be read by age."""
        return self.looked_up / max(self.rows, 1.0)


async def sample(conn: AsyncConnection[Any], target: Target, horizon: datetime) -> Sample:
    """Estimate how many rows a table has, and how many of them are eligible."""
    percent = await sampled_percent(conn, target)
    # Rows that others refer to may be most of what is old and stay for years: each run looks them up again.
    query = "sample_old" if target.references else "sample"
    rows, eligible, *old = await fetch_row(
        conn, target.fill(QUERIES[query]), {"horizon": horizon, "percent": percent}
    )
    looked_up = old[0] if old else eligible
    return Sample(rows * 100 / percent, eligible * 100 / percent, looked_up * 100 / percent)


async def sampled_percent(conn: AsyncConnection[Any], target: Target) -> float:
    """Return which part of a table a sample reads: a few hundred blocks, however many there are."""
    (blocks,) = await fetch_row(conn, QUERIES["blocks"], {"oid": target.oid})
    return min(100.0, 100.0 * _SAMPLED_BLOCKS / max(int(blocks), 1))


async def estimate_row_bytes(conn: AsyncConnection[Any], target: Target, drawn: Sample) -> float:
    """Estimate the size of a row, with its part of the indexes and of TOAST."""
    (size,) = await fetch_row(conn, QUERIES["bytes"], {"oid": target.oid})
    return float(size) / drawn.rows if drawn.rows else 0.0

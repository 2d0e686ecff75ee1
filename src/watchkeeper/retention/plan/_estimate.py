"""The estimates of a plan: size of the rows, duration of a run, and the index that would help."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.run._share_guard import LARGE_RUN_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import AsyncConnection

    from watchkeeper.retention.table._partitions import Partition
    from watchkeeper.retention.table._target import Target

# Used until the table has had large runs. Measured with up to 2.5 M rows of 100 bytes and two indexes, on
# two shared cores: 1.4 to 3.3 us for each row of a block scan, some 20 us for each row of an index scan.
_S_PER_ROW_BLOCK_SCAN: Final = 2.5e-6
_S_PER_ROW_INDEX_SCAN: Final = 20e-6
_S_PER_ROW_READ: Final = 0.1e-6
_S_PER_PARTITION: Final = 0.05
_S_PER_RUN: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """The size of a table with its indexes, and its approximate number of rows."""

    bytes: int
    rows: int

    def estimate_bytes(self, rows: int, dropped: Sequence[Partition]) -> int:
        """Return the approximate size of these rows, including those of dropped partitions."""
        dropped_bytes, dropped_rows = sum(one.bytes for one in dropped), sum(one.rows for one in dropped)
        left = max(rows - dropped_rows, 0)
        share = left / max(self.rows - dropped_rows, rows - dropped_rows, 1)
        return dropped_bytes + round(max(self.bytes - dropped_bytes, 0) * share)


async def measure_size(conn: AsyncConnection[Any], target: Target) -> Size:
    """Return the size of a table; its number of rows is as of the last ANALYZE."""
    (size,) = await fetch_row(conn, QUERIES["bytes"], {"oid": target.oid})
    (rows,) = await fetch_row(conn, QUERIES["analyzed_rows"], {"oid": target.oid})
    return Size(bytes=size, rows=rows)


async def estimate_duration(  # noqa: PLR0913 - the inputs of the estimate
    conn: AsyncConnection[Any],
    target: Target,
    *,
    rows: int,
    table_rows: int,
    dropped: Sequence[Partition],
    index_scan: bool,
    budget: float,
) -> timedelta:
    """Estimate how long a run takes, from the rate of the table's last large runs if there are any."""
    dropped_rows = sum(one.rows for one in dropped)
    left = max(rows - dropped_rows, 0)
    seconds = _S_PER_RUN + (len(dropped) * _S_PER_PARTITION + dropped_rows * _S_PER_ROW_READ) / budget
    deleted, took = await fetch_row(conn, QUERIES["rate"], {"table": target.name, "rows": LARGE_RUN_ROWS})
    if deleted:
        return timedelta(seconds=seconds + left * took / deleted)
    if index_scan:
        scan = left * _S_PER_ROW_INDEX_SCAN
    else:
        scan = left * _S_PER_ROW_BLOCK_SCAN + max(table_rows - dropped_rows, 0) * _S_PER_ROW_READ
    return timedelta(seconds=seconds + scan / budget)


async def propose_index(conn: AsyncConnection[Any], target: Target) -> tuple[str, ...]:
    """Return the statements that create an index on the age column; none where there is one.

    A partitioned table gets indexes on its partitions first, concurrently; its own index then attaches them.
    """
    parameters = {"oid": target.oid, "age": target.age_column}
    missing = await (await conn.execute(QUERIES["missing_index"], parameters)).fetchall()
    return tuple(
        f"CREATE INDEX {'' if partitioned else 'CONCURRENTLY '}ON {table} ({age})"
        for table, age, partitioned in missing
    )

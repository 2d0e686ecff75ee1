"""What a plan tells beside the rows: how large they are, how long a run takes, which index would help."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.table._share import FROM_ROWS

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from watchkeeper.retention.table._partitions import Partition
    from watchkeeper.retention.table._target import Target

# Until the table has runs of its own. Measured with up to 2.5 M rows of 100 bytes and two indexes, on two
# cores that others used too: 1.4 to 3.3 us for each row that goes by its place, some 20 us by its age.
_S_PER_ROW: Final = 2.5e-6
_S_PER_ROW_BY_AGE: Final = 20e-6
_S_PER_ROW_READ: Final = 0.1e-6
_S_PER_PARTITION: Final = 0.05
_S_PER_RUN: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large a table is.

    Args:
        bytes: With its indexes.
        rows: About how many rows it has.
    """

    bytes: int
    rows: int

    def of(self, rows: int, dropped: tuple[Partition, ...]) -> int:
        """Return about how many bytes so many rows take, of which some partitions are a part.

        Args:
            rows: How many would go.
            dropped: What of them would go as a whole.
        """
        whole, inside = sum(one.bytes for one in dropped), sum(one.rows for one in dropped)
        share = max(rows - inside, 0) / max(self.rows - inside, rows - inside, 1)
        return whole + round(max(self.bytes - whole, 0) * share)


async def measure_size(conn: AsyncConnection[Any], target: Target) -> Size:
    """Return how large a table is, and about how many rows it has, as it was last analysed.

    Args:
        conn: Any connection.
        target: The table.
    """
    (size,) = await fetch_row(conn, QUERIES["bytes"], {"oid": target.oid})
    (rows,) = await fetch_row(conn, QUERIES["totals"], {"oid": target.oid})
    return Size(bytes=size, rows=rows)


async def estimate_time(  # noqa: PLR0913 - all that it depends on
    conn: AsyncConnection[Any],
    target: Target,
    *,
    rows: int,
    table_rows: int,
    dropped: tuple[Partition, ...],
    by_age: bool,
    budget: float,
) -> timedelta:
    """Return about how long a run takes: as quick as the table's last ones were, if there are any.

    Args:
        conn: Any connection.
        target: The table.
        rows: How many would go.
        table_rows: How many it has.
        dropped: What of them would go as a whole.
        by_age: Whether the others are looked up by their age.
        budget: Share of the time that the run takes.
    """
    whole = sum(one.rows for one in dropped)
    swept = max(rows - whole, 0)
    seconds = _S_PER_RUN + (len(dropped) * _S_PER_PARTITION + whole * _S_PER_ROW_READ) / budget
    deleted, took = await fetch_row(conn, QUERIES["rate"], {"table": target.name, "rows": FROM_ROWS})
    if deleted:
        return timedelta(seconds=seconds + swept * took / deleted)
    if by_age:
        each = swept * _S_PER_ROW_BY_AGE
    else:
        each = swept * _S_PER_ROW + max(table_rows - whole, 0) * _S_PER_ROW_READ
    return timedelta(seconds=seconds + each / budget)


async def propose_index(conn: AsyncConnection[Any], target: Target) -> tuple[str, ...]:
    """Return the statements that make the index of the ages; none where there is one.

    A partitioned table takes no index concurrently. Its partitions do, and an index on the table then takes
    theirs in, which is done in a moment.

    Args:
        conn: Any connection.
        target: The table.
    """
    parameters = {"oid": target.oid, "age": target.age_column}
    lacking = await (await conn.execute(QUERIES["lacking_index"], parameters)).fetchall()
    return tuple(
        f"CREATE INDEX {'' if partitioned else 'CONCURRENTLY '}ON {table} ({age})"
        for table, age, partitioned in lacking
    )

"""Sizes and waits of a run that no operator needs to set; tests pass their own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much one batch covers: rows of an age range, or blocks of a block range."""

    first: int
    smallest: int
    largest: int
    largest_empty: int  # while batches delete nothing: the next one may be full


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """The constants of a run."""

    ages: Sizes = Sizes(first=1000, smallest=100, largest=50_000, largest_empty=1000)
    blocks: Sizes = Sizes(first=8, smallest=1, largest=8192, largest_empty=512)
    # Up to this share, old rows are looked up through the index on the age column; above it, all blocks are
    # scanned. Measured with 2.5 M rows: about 8 us per row looked up, 0.1 us per row scanned.
    index_scan_share: float = 0.02
    statement_timeout: timedelta = timedelta(seconds=5)
    lock_timeout: timedelta = timedelta(seconds=1)
    # How long a plain DELETE waits for a row that another transaction has locked.
    row_lock_timeout: timedelta = timedelta(milliseconds=10)
    # Before each later pass, for the transactions that locked rows during the last one.
    pass_waits: tuple[timedelta, ...] = tuple(timedelta(seconds=seconds) for seconds in (0, 0.2, 1, 5))
    # After each transient error; if one follows the last wait, the run fails.
    retry_waits: tuple[timedelta, ...] = tuple(
        timedelta(seconds=seconds) for seconds in (0.1, 0.2, 0.5, 1, 2, 4, 8)
    )
    # In a table that references itself, each pass deletes the rows that nothing references any more: at most
    # this many such passes in one run.
    max_reference_passes: int = 200
    # Between checks of the pressure and of operator commands.
    check_interval: timedelta = timedelta(seconds=1)
    # A run produces dead rows itself. Until autovacuum has had time to run (autovacuum_naptime is a minute),
    # only those that existed at its start count.
    vacuum_grace: timedelta = timedelta(minutes=2)
    # Limits of an archive segment: they bound memory, and the transaction that reads the rows.
    segment_rows: int = 10_000
    segment_bytes: int = 8 << 20
    segment_read_time: timedelta = timedelta(milliseconds=75)
    # Blocks that one statement counts of a partition.
    partition_first_blocks: int = 2048
    partition_largest_blocks: int = 65_536
    # For DROP once it has all locks, on a slow disk: a base, and a part for each table with its indexes.
    drop_timeout: timedelta = timedelta(seconds=1)
    drop_timeout_per_table: timedelta = timedelta(milliseconds=10)

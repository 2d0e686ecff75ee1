"""The sizes and waits that a run works with; an operator does not set them, tests pass smaller ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much one transaction takes on: in rows for an age range, in blocks for a block range."""

    first: int
    smallest: int
    largest: int
    largest_empty: int  # as far as a batch may grow that deletes nothing: what follows may be full


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """The constants of a run."""

    ages: Sizes = Sizes(first=1000, smallest=100, largest=50_000, largest_empty=1000)
    blocks: Sizes = Sizes(first=8, smallest=1, largest=8192, largest_empty=512)
    # Below this share of old rows each one is looked up by the index on the age, above it all blocks are
    # read. Measured with 2.5 M rows: some 8 us for each row that is looked up, 0.1 us for each that is read.
    index_scan_share: float = 0.02
    statement_timeout: timedelta = timedelta(seconds=5)
    lock_timeout: timedelta = timedelta(seconds=1)
    # Longest wait of a plain DELETE for a row that another transaction has locked.
    row_lock_timeout: timedelta = timedelta(milliseconds=10)
    # Before each further pass, for the transactions that hold the locks that the last pass met.
    pass_waits: tuple[timedelta, ...] = tuple(timedelta(seconds=seconds) for seconds in (0, 0.2, 1, 5))
    # After each transient failure; if it persists after the last one, the run has failed.
    retry_waits: tuple[timedelta, ...] = tuple(
        timedelta(seconds=seconds) for seconds in (0.1, 0.2, 0.5, 1, 2, 4, 8)
    )
    # Where rows refer to other rows of the same table, each pass takes those that nothing refers to any more:
    # the most passes of this kind in one run.
    most_reference_passes: int = 200
    # How often a waiting run looks at the pressure and at operator commands.
    check_interval: timedelta = timedelta(seconds=1)
    # A run makes dead rows itself. Only those that it found count, until autovacuum could have run (once a
    # minute by default, autovacuum_naptime).
    vacuum_grace: timedelta = timedelta(minutes=2)
    # The most that one segment of an archive holds: memory, and time of the transaction that reads it.
    segment_rows: int = 10_000
    segment_bytes: int = 8 << 20
    segment_read_time: timedelta = timedelta(milliseconds=75)
    # Counting a partition, in blocks a statement.
    partition_first_blocks: int = 2048
    partition_largest_blocks: int = 65_536
    # Once DROP waits for no lock, a slow disk gets this time, and more for each table with its indexes.
    drop_timeout: timedelta = timedelta(seconds=1)
    drop_timeout_per_table: timedelta = timedelta(milliseconds=10)

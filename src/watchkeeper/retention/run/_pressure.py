"""What makes a run hurt others: replicas that lag, WAL that grows, vacuum that is behind, a disk that fills.

A run looks between its transactions, at most once a second, and waits as long as there is something. What its
role may not see is told once, and is no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import psycopg
from psycopg.rows import dict_row

from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention._queries import QUERIES
from watchkeeper.retention.table._vacuum import read_vacuum

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from watchkeeper.database import Database
    from watchkeeper.retention._log_lines import JobLines
    from watchkeeper.retention._policy import Policy
    from watchkeeper.settings import Thresholds

Reason = Literal["replication lag", "long transaction", "vacuum", "wal", "disk"]

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""What a run waits for; in the ledger a colon and the details follow."""

_MIB: Final = 1 << 20
# Once it waits, a run goes on when the lag is half of what made it wait, not the moment it is a byte less.
_EASED: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Pressure:
    """What a run waits for.

    Args:
        reason: One of `REASONS`.
        detail: What was seen, as a sentence.
    """

    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class PressureWatch:
    """Looks at the server for the runs of one service.

    Args:
        database: Where the tables are.
        free_space: Returns how many bytes are free, and how many there are, where the database's files are;
            None if that is not known here.
        lines: Where waiting is told, and once what the role may not see, with what mends it.
    """

    def __init__(
        self,
        database: Database,
        *,
        free_space: Callable[[], tuple[int, int] | None],
        lines: JobLines,
    ) -> None:
        self._database = database
        self._free_space = free_space
        self.lines = lines
        self._blind = False

    async def look(
        self, policy: Policy, thresholds: Thresholds, *, patient: bool, vacuum: bool, waits: bool
    ) -> Pressure | None:
        """Return what a run would make worse, None if nothing.

        Args:
            policy: What the run prunes.
            thresholds: From where on it waits.
            patient: Whether it also waits for long transactions, and for vacuum,
            vacuum: the latter unless it has waited for that long enough.
            waits: Whether it waits already.
        """
        found = _of_disk(self._free_space(), thresholds)
        if found is not None:
            return found
        try:
            async with (
                self._database.connection() as conn,
                conn.cursor(row_factory=dict_row) as cursor,
            ):
                await cursor.execute(QUERIES["pressure"])
                (seen,) = await cursor.fetchall()
                tables = await read_vacuum(conn, [policy]) if patient and vacuum else {}
        except DatabaseUnavailableError:
            return None  # if that does not pass, the next transaction has it too
        except psycopg.Error as error:
            self._tell(f"the database refuses to say ({' '.join(str(error).split())})")
            return None
        if not seen["sees_all"]:
            self._tell(f"{seen['role']} lacks a privilege: GRANT pg_read_all_stats TO {seen['role']}")
        found = _of_wal(seen) or _of_replicas(seen, thresholds, _EASED if waits else 1.0)
        if found is None and patient:
            found = _of_transactions(seen, thresholds)
        table = tables.get(policy.name)
        if found is None and table is not None and table.is_behind(thresholds.dead_rows):
            detail = f"{table.due:,} dead rows of {policy.name} wait for vacuum"
            found = Pressure(reason="vacuum", detail=f"{detail}, which starts at {table.starts_at:,.0f}")
        return found

    def _tell(self, why: str) -> None:
        if not self._blind:
            self._blind = True
            self.lines.blind(
                "Retention does not see all that it would wait for (lag of replicas, long transactions of"
                f" others): {why}."
            )


def _of_disk(space: tuple[int, int] | None, thresholds: Thresholds) -> Pressure | None:
    if space is None:
        return None
    free, size = space
    if free >= min(size * thresholds.disk_share, thresholds.disk_bytes):
        return None
    return Pressure(reason="disk", detail=f"{_size(free)} are free where the database is")


def _of_wal(seen: Mapping[str, Any]) -> Pressure | None:
    if seen["archiver_fails"]:
        detail = f"the archiving of WAL fails (archive_command, {seen['archiver_file']})"
        return Pressure(reason="wal", detail=detail)
    if seen["unchecked"] > seen["max_wal_size"]:
        detail = (
            f"{_size(seen['unchecked'])} of WAL were written since the last checkpoint, over max_wal_size"
        )
        return Pressure(reason="wal", detail=detail)
    return None


def _of_replicas(seen: Mapping[str, Any], thresholds: Thresholds, part: float) -> Pressure | None:
    if (seen["lag_bytes"] or 0) > thresholds.lag_bytes * part:
        detail = f"the replica {seen['replica']} is {_size(seen['lag_bytes'])} behind"
        return Pressure(reason="replication lag", detail=detail)
    if (seen["lag_seconds"] or 0) > thresholds.lag.total_seconds() * part:
        detail = f"the replica {seen['replica']} is {seen['lag_seconds']:,.0f} s behind"
        return Pressure(reason="replication lag", detail=detail)
    if (seen["slot_bytes"] or 0) > thresholds.slot_bytes * part:
        detail = f"the replication slot {seen['slot']} keeps {_size(seen['slot_bytes'])} of WAL"
        return Pressure(reason="replication lag", detail=detail)
    return None


def _of_transactions(seen: Mapping[str, Any], thresholds: Thresholds) -> Pressure | None:
    if (seen["transaction_seconds"] or 0) <= thresholds.transaction.total_seconds():
        return None
    seconds = seen["transaction_seconds"]
    span = f"{seconds / 60:,.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
    detail = f"a transaction of {seen['transaction']} is open for {span}"
    return Pressure(reason="long transaction", detail=f"{detail}, and nothing can be vacuumed meanwhile")


def _size(count: int) -> str:
    return f"{count / _MIB:,.0f} MiB"

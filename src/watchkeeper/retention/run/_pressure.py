"""Measures the pressure on the database: replication lag, WAL, vacuum, long transactions, a full disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.rows import dict_row

from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.retention._model import Pressure
from watchkeeper.retention._queries import QUERIES
from watchkeeper.retention.table._vacuum import read_vacuum

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from watchkeeper.database import Database
    from watchkeeper.retention._policy import Policy
    from watchkeeper.settings import Thresholds

_MIB: Final = 1 << 20
# Hysteresis: a waiting run continues when the lag has fallen to half of its threshold.
_EASED: Final = 0.5


class PressureWatch:
    """Measures the server for the runs of one service; `free_space` is of the disk with the database's files.

    `on_missing_privilege` is called once, with a sentence, if the role cannot see all kinds of pressure.
    """

    def __init__(
        self,
        database: Database,
        *,
        free_space: Callable[[], tuple[int, int] | None],
        on_missing_privilege: Callable[[str], None],
    ) -> None:
        self._database = database
        self._free_space = free_space
        self._on_missing_privilege = on_missing_privilege
        self._reported = False

    async def measure(
        self, policy: Policy, thresholds: Thresholds, *, share_time: bool, vacuum: bool, waiting: bool
    ) -> Pressure | None:
        """Return the pressure that a run would worsen now; None if there is none.

        An unthrottled run (not `share_time`) ignores long transactions and vacuum; `vacuum` is False for a
        run that has waited long enough for it, `waiting` is True for one that waits already.
        """
        found = _disk_pressure(self._free_space(), thresholds)
        if found is not None:
            return found
        try:
            async with self._database.connection() as conn, conn.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(QUERIES["pressure"])
                (seen,) = await cursor.fetchall()
                tables = await read_vacuum(conn, [policy]) if share_time and vacuum else {}
        except DatabaseUnavailableError:
            return None  # if the outage lasts, the next transaction fails too
        except psycopg.Error as error:
            self._report(f"the database refuses the query ({' '.join(str(error).split())})")
            return None
        if not seen["sees_all"]:
            self._report(f"{seen['role']} lacks a privilege: GRANT pg_read_all_stats TO {seen['role']}")
        found = _wal_pressure(seen) or _replica_pressure(seen, thresholds, _EASED if waiting else 1.0)
        if found is None and share_time:
            found = _transaction_pressure(seen, thresholds)
        table = tables.get(policy.name)
        if found is None and table is not None and table.is_behind(thresholds.dead_rows):
            detail = f"{table.due:,} dead rows of {policy.name} wait for vacuum"
            found = Pressure(reason="vacuum", detail=f"{detail}, which starts at {table.starts_at:,.0f}")
        return found

    def _report(self, why: str) -> None:
        if not self._reported:
            self._reported = True
            self._on_missing_privilege(
                "Retention cannot check everything that runs should wait for (replication lag, long"
                f" transactions of others): {why}."
            )


def _disk_pressure(space: tuple[int, int] | None, thresholds: Thresholds) -> Pressure | None:
    if space is None:
        return None
    free, size = space
    if free >= min(size * thresholds.disk_share, thresholds.disk_bytes):
        return None
    return Pressure(reason="disk", detail=f"{_size(free)} are free where the database is")


def _wal_pressure(seen: Mapping[str, Any]) -> Pressure | None:
    if seen["archiver_fails"]:
        detail = f"archiving WAL fails (archive_command, {seen['archiver_file']})"
        return Pressure(reason="wal", detail=detail)
    if seen["unchecked"] > seen["max_wal_size"]:
        detail = (
            f"{_size(seen['unchecked'])} of WAL were written since the last checkpoint, over max_wal_size"
        )
        return Pressure(reason="wal", detail=detail)
    return None


def _replica_pressure(seen: Mapping[str, Any], thresholds: Thresholds, factor: float) -> Pressure | None:
    if (seen["lag_bytes"] or 0) > thresholds.lag_bytes * factor:
        detail = f"the replica {seen['replica']} is {_size(seen['lag_bytes'])} behind"
        return Pressure(reason="replication lag", detail=detail)
    if (seen["lag_seconds"] or 0) > thresholds.lag.total_seconds() * factor:
        detail = f"the replica {seen['replica']} is {seen['lag_seconds']:,.0f} s behind"
        return Pressure(reason="replication lag", detail=detail)
    if (seen["slot_bytes"] or 0) > thresholds.slot_bytes * factor:
        detail = f"the replication slot {seen['slot']} keeps {_size(seen['slot_bytes'])} of WAL"
        return Pressure(reason="replication lag", detail=detail)
    return None


def _transaction_pressure(seen: Mapping[str, Any], thresholds: Thresholds) -> Pressure | None:
    if (seen["transaction_seconds"] or 0) <= thresholds.transaction.total_seconds():
        return None
    seconds = seen["transaction_seconds"]
    age = f"{seconds / 60:,.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
    detail = f"a transaction of {seen['transaction']} has been open for {age} and blocks vacuum"
    return Pressure(reason="long transaction", detail=detail)


def _size(count: int) -> str:
    return f"{count / _MIB:,.0f} MiB"

"""The thresholds at which a run waits, and at which it continues."""

from datetime import timedelta
from typing import Any

import pytest

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention import Thresholds
from watchkeeper.retention._model import REASONS
from watchkeeper.retention.run._pressure import (
    _disk_pressure,
    _replica_pressure,
    _transaction_pressure,
    _wal_pressure,
)
from watchkeeper.retention.table._vacuum import Vacuum

MIB = 1 << 20
NOTHING = (
    *("replica", "lag_bytes", "lag_seconds", "slot", "slot_bytes", "archiver_fails", "archiver_file"),
    *("transaction", "transaction_seconds"),
)
QUIET: dict[str, Any] = {**dict.fromkeys(NOTHING), "unchecked": 0, "max_wal_size": 1024 * MIB}


@pytest.mark.parametrize(
    ("free", "size", "waits"),
    [
        (400 * MIB, 10_000 * MIB, True),
        (500 * MIB, 10_000 * MIB, False),
        (1023 * MIB, 10_000_000 * MIB, True),
        (1024 * MIB, 10_000_000 * MIB, False),
    ],
)
def test_disk_threshold_is_a_share_of_small_disks_and_a_gigabyte_of_large_ones(
    free: int, size: int, *, waits: bool
) -> None:
    """5 % of ten terabytes is no reason to wait."""
    assert (_disk_pressure((free, size), Thresholds()) is not None) == waits


@pytest.mark.parametrize(
    ("seen", "part", "detail"),
    [
        ({"lag_bytes": 256 * MIB, "lag_seconds": 30, "slot_bytes": 4096 * MIB}, 1.0, None),
        ({"lag_bytes": 257 * MIB}, 1.0, "the replica r is 257 MiB behind"),
        ({"lag_seconds": 31}, 1.0, "the replica r is 31 s behind"),
        ({"slot_bytes": 4097 * MIB}, 1.0, "the replication slot s keeps 4,097 MiB of WAL"),
        ({"lag_bytes": 128 * MIB, "lag_seconds": 15}, 0.5, None),
        ({"lag_bytes": 129 * MIB}, 0.5, "the replica r is 129 MiB behind"),
        ({"lag_seconds": 16}, 0.5, "the replica r is 16 s behind"),
    ],
)
def test_waiting_ends_at_half_of_the_lag(seen: dict[str, Any], part: float, detail: str | None) -> None:
    """Otherwise a run would flap around the threshold."""
    found = _replica_pressure({**QUIET, "replica": "r", "slot": "s", **seen}, Thresholds(), part)
    assert (found and found.detail) == detail


def test_idle_server_is_no_reason_to_wait() -> None:
    """No replica, slot, archive or other session, and a disk that cannot be seen."""
    assert _disk_pressure(None, Thresholds()) is None
    assert _wal_pressure(QUIET) is None
    assert _replica_pressure(QUIET, Thresholds(), 1.0) is None
    assert _transaction_pressure(QUIET, Thresholds()) is None


def test_description_starts_with_the_reason() -> None:
    """Readers of the ledger take the word before the colon."""
    found = _wal_pressure({**QUIET, "unchecked": 1025 * MIB})
    assert str(found) == "wal: 1,025 MiB of WAL were written since the last checkpoint, over max_wal_size"
    assert str(found).partition(":")[0] in REASONS


@pytest.mark.parametrize(
    ("due", "automatic", "behind"), [(301, True, True), (300, True, False), (301, False, False)]
)
def test_vacuum_is_late_at_three_times_its_threshold(due: int, *, automatic: bool, behind: bool) -> None:
    """Where autovacuum is off, nothing is late."""
    table = Vacuum(table="t", dead=due, due=due, starts_at=100.0, automatic=automatic, vacuumed_at=None)
    assert table.is_behind() == behind


@pytest.mark.parametrize("wrong", [{"lag": timedelta(0)}, {"transaction": timedelta(0)}, {"lag_bytes": 0}])
def test_threshold_of_zero_is_refused(wrong: dict[str, Any]) -> None:
    """Every run would wait forever."""
    with pytest.raises(ConfigurationError, match=r"takes a .* over 0"):
        Thresholds(**wrong)

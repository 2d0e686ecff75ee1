"""The archive's disk is full, closed or gone: nothing goes that is not archived, and it is mended by room."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support.archive import ARCHIVED, HookedArchive, archived
from watchkeeper.exceptions import ArchiveError
from watchkeeper.retention import FolderArchive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.retention import RetentionDB
    from watchkeeper.retention import RunResult

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@pytest.fixture
def db(db: RetentionDB, monkeypatch: pytest.MonkeyPatch) -> RetentionDB:
    """The database whose run makes many small segments."""
    monkeypatch.setattr("watchkeeper.retention.run._archived_sweep.MOST_BYTES", 40_000)
    db.make_table()
    db.fill("inbound_events", 40, 10_000)
    return db


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 32 KiB small; the test may remount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=32k,mode=0700", "tmpfs", str(disk))
    except subprocess.CalledProcessError:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["/bin/umount", disk], check=True)


def mount(*arguments: str) -> None:
    """Mount something."""
    subprocess.run(["/bin/mount", *arguments], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow over a size, as a full disk would: a write comes to a part, and then fails."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def check_that_nothing_is_lost(db: RetentionDB, result: RunResult) -> None:
    """What is gone is archived; what is not is there; files are whole; the entry tells the same."""
    gone = 10_000 - db.count("inbound_events")
    rows = archived(db)
    assert gone == result.deleted == len(rows) == len({row["id"] for row in rows}) > 0
    for file in (db.folder / "disk").rglob("*.gz"):
        with gzip.open(file) as lines:
            assert len(lines.read().splitlines()) >= gone
    (entry,) = db.audit_payloads()
    assert (entry["deleted"], entry["archived"]["rows"], entry["status"]) == (gone, gone, "failed")


@only_root
async def test_a_disk_that_fills_up(db: RetentionDB, small_disk: Path) -> None:
    """The run fails with a sentence, is tried again by the schedule, and completes when there is room."""
    archive = FolderArchive(small_disk / "archive")
    retention = await db.overdue(ARCHIVED, archive=archive)
    (result,) = await retention.tick()
    assert isinstance(result.error, ArchiveError)
    assert str(result.error) == (
        f"The archive in {small_disk}/archive cannot be written (No space left on device), and what is not"
        " archived is not deleted: free some space there, or choose another folder (WATCHKEEPER_ARCHIVE_DIR)."
    )
    check_that_nothing_is_lost(db, result)
    mount("-o", "remount,size=8m", str(small_disk))
    assert await retention.tick() == []  # it waits for its next attempt
    db.sql("UPDATE retention_runs SET finished_at = finished_at - interval '2 minutes'")
    (result,) = await retention.tick()
    assert (result.error, db.count("inbound_events"), len(archived(db))) == (None, 0, 10_000)
    assert [state for _, state, _ in db.runs()] == ["failed", "completed"]
    for run in (1, 2):
        await retention.operator.restore(run, restored_by="ann")
    assert db.count("inbound_events") == 10_000


async def test_a_file_that_may_not_grow(db: RetentionDB) -> None:
    """A write that came to a part is cut off again, so that the file stays whole."""
    retention = db.retention(ARCHIVED, archive=FolderArchive(db.folder / "disk"))
    with largest_file(20_000):
        (result,) = await retention.run_now()
    assert "cannot be written (File too large)" in str(result.error)
    check_that_nothing_is_lost(db, result)
    (file,) = (db.folder / "disk").rglob("*.gz")
    assert [(file.stat().st_size,)] == db.sql("SELECT max(start + length) FROM retention_archives")
    (result,) = await retention.run_now()
    assert (result.error, db.count("inbound_events"), len(archived(db))) == (None, 0, 10_000)


async def test_a_folder_that_is_no_folder(db: RetentionDB) -> None:
    """A file is in the way: nothing goes, and the sentence names the folder."""
    (db.folder / "taken").write_text("")
    archive = FolderArchive(db.folder / "taken/archive")
    (result,) = await db.retention(ARCHIVED, archive=archive).run_now()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("failed", 0, 10_000)
    assert f"The archive in {db.folder}/taken/archive cannot be written (Not a directory)" in str(
        result.error
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_is_closed(db: RetentionDB) -> None:
    """Whoever runs the service may not write there."""
    (db.folder / "closed").mkdir(mode=0o500)
    archive = FolderArchive(db.folder / "closed/archive")
    (result,) = await db.retention(ARCHIVED, archive=archive).run_now()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("failed", 0, 10_000)
    assert "(Permission denied), and what is not archived is not deleted: let the account" in str(
        result.error
    )


@only_root
async def test_a_disk_that_is_read_only(db: RetentionDB, small_disk: Path) -> None:
    """As disks become that have an error: nothing goes."""
    mount("-o", "remount,ro", str(small_disk))
    (result,) = await db.retention(ARCHIVED, archive=FolderArchive(small_disk / "archive")).run_now()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("failed", 0, 10_000)
    assert "(Read-only file system), and what is not archived is not deleted" in str(result.error)


async def test_a_folder_that_goes_away_in_the_middle(db: RetentionDB) -> None:
    """It is made anew; what was in it is missing, and restoring says so and brings the rest back."""
    folder = db.folder / "disk"

    def lose(segment: int) -> None:
        if segment == 3:
            (folder / "inbound_events/1-0001.jsonl.gz").rename(db.folder / "lost")
            (folder / "inbound_events").rmdir()

    retention = db.retention(ARCHIVED, archive=HookedArchive(folder, lose))
    (result,) = await retention.run_now()
    assert (result.error, result.deleted) == (None, 10_000)
    ((lost,),) = db.sql("SELECT sum(deleted) FROM retention_archives WHERE id <= 3")
    restored = await retention.operator.restore(1, restored_by="ann")
    assert restored.rows == 10_000 - lost
    assert len(restored.problems) == 3
    assert all("is damaged: its checksum is not the ledger's" in problem for problem in restored.problems)
    (db.folder / "lost").rename(folder / "inbound_events/1-0001.jsonl.gz")
    restored = await retention.operator.restore(1, restored_by="ann")
    assert (restored.rows, restored.problems, db.count("inbound_events")) == (lost, (), 10_000)

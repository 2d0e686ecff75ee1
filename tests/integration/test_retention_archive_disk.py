"""The archive's disk is full, read-only or missing: nothing is deleted unarchived."""

import gzip
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.archive import ARCHIVED, HookedArchive, archived
from support.retention import RetentionDB
from watchkeeper.exceptions import ArchiveError
from watchkeeper.retention import FolderArchive, RunResult

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@pytest.fixture
def db(db: RetentionDB) -> RetentionDB:
    """The database, with a run that writes many small segments."""
    db.tune(segment_bytes=40_000)
    db.make_table(old=10_000)
    return db


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 32 KiB, which the test may remount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=32k,mode=0700", "tmpfs", str(disk))
    except subprocess.CalledProcessError:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["/bin/umount", disk], check=True)


def mount(*arguments: str) -> None:
    """Mount a file system."""
    subprocess.run(["/bin/mount", *arguments], check=True)


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Limit the size of files: a write succeeds in part, then fails, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def check_nothing_is_lost(db: RetentionDB, result: RunResult) -> None:
    """Check that every row is in the archive or in the table, files are whole, and the audit entry agrees."""
    gone = 10_000 - db.count("inbound_events")
    rows = archived(db)
    assert gone == result.deleted == len(rows) == len({row["id"] for row in rows}) > 0
    for file in (db.folder / "disk").rglob("*.gz"):
        with gzip.open(file) as lines:
            assert len(lines.read().splitlines()) >= gone
    (entry,) = db.audit_payloads()
    assert (entry["deleted"], entry["archived"]["rows"], entry["status"]) == (gone, gone, "failed")


@only_root
async def test_full_disk_fails_the_run_until_there_is_room(db: RetentionDB, small_disk: Path) -> None:
    """The run fails with a message, is retried by the schedule, and completes once there is room."""
    archive = FolderArchive(small_disk / "archive")
    retention = await db.overdue(ARCHIVED, archive=archive)
    (result,) = await retention.tick()
    assert isinstance(result.error, ArchiveError)
    assert str(result.error) == (
        f"The archive in {small_disk}/archive cannot be written (No space left on device), and rows that are"
        " not archived are not deleted: free some space there, or choose another folder"
        " (WATCHKEEPER_ARCHIVE_DIR)."
    )
    check_nothing_is_lost(db, result)
    mount("-o", "remount,size=8m", str(small_disk))
    assert await retention.tick() == []  # it waits for its next attempt
    db.sql("UPDATE retention_runs SET finished_at = finished_at - interval '2 minutes'")
    (result,) = await retention.tick()
    assert (result.error, db.count("inbound_events"), len(archived(db))) == (None, 0, 10_000)
    assert [state for _, state, _ in db.runs()] == ["failed", "completed"]
    for run in (1, 2):
        await retention.operator.restore(run, restored_by="ann")
    assert db.count("inbound_events") == 10_000


async def test_partial_write_is_truncated(db: RetentionDB) -> None:
    """The file stays whole."""
    retention = db.retention(ARCHIVED, archive=FolderArchive(db.folder / "disk"))
    with limit_file_size(20_000):
        (result,) = await retention.run_now()
    assert "cannot be written (File too large)" in str(result.error)
    check_nothing_is_lost(db, result)
    (file,) = (db.folder / "disk").rglob("*.gz")
    assert [(file.stat().st_size,)] == db.sql("SELECT max(start + length) FROM retention_archives")
    (result,) = await retention.run_now()
    assert (result.error, db.count("inbound_events"), len(archived(db))) == (None, 0, 10_000)


async def test_file_in_place_of_the_folder_is_named(db: RetentionDB) -> None:
    """Nothing is deleted, and the error names the folder."""
    (db.folder / "taken").write_text("")
    archive = FolderArchive(db.folder / "taken/archive")
    (result,) = await db.retention(ARCHIVED, archive=archive).run_now()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("failed", 0, 10_000)
    assert f"The archive in {db.folder}/taken/archive cannot be written (Not a directory)" in str(
        result.error
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_folder_without_permission_fails_the_run(db: RetentionDB) -> None:
    """The account of the service may not write there."""
    (db.folder / "closed").mkdir(mode=0o500)
    archive = FolderArchive(db.folder / "closed/archive")
    (result,) = await db.retention(ARCHIVED, archive=archive).run_now()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("failed", 0, 10_000)
    assert "(Permission denied), and rows that are not archived are not deleted: give the service" in str(
        result.error
    )


@only_root
async def test_read_only_disk_deletes_nothing(db: RetentionDB, small_disk: Path) -> None:
    """Linux remounts a disk read-only after an error."""
    mount("-o", "remount,ro", str(small_disk))
    (result,) = await db.retention(ARCHIVED, archive=FolderArchive(small_disk / "archive")).run_now()
    assert (result.status, result.deleted, db.count("inbound_events")) == ("failed", 0, 10_000)
    assert "(Read-only file system), and rows that are not archived are not deleted" in str(result.error)


async def test_folder_removed_during_a_run_is_created_again(db: RetentionDB) -> None:
    """A restore reports the lost segments and brings back the rest."""
    folder = db.folder / "disk"

    def lose() -> None:
        (folder / "inbound_events/1-0001.jsonl.gz").rename(db.folder / "lost")
        (folder / "inbound_events").rmdir()

    retention = db.retention(ARCHIVED, archive=HookedArchive(folder, lose, segment=3))
    (result,) = await retention.run_now()
    assert (result.error, result.deleted) == (None, 10_000)
    ((lost,),) = db.sql("SELECT sum(deleted) FROM retention_archives WHERE id <= 3")
    restored = await retention.operator.restore(1, restored_by="ann")
    assert restored.rows == 10_000 - lost
    assert len(restored.problems) == 3
    assert all("is damaged: its checksum differs" in problem for problem in restored.problems)
    (db.folder / "lost").rename(folder / "inbound_events/1-0001.jsonl.gz")
    restored = await retention.operator.restore(1, restored_by="ann")
    assert (restored.rows, restored.problems, db.count("inbound_events")) == (lost, (), 10_000)

"""Migration files: how they are named, numbered and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from watchkeeper.database import MigrationSource
from watchkeeper.database._migrations import LIBRARY_MIGRATIONS, find_missing
from watchkeeper.exceptions import MigrationError

if TYPE_CHECKING:
    from pathlib import Path


def _source(folder: Path, **files: str) -> MigrationSource:
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return MigrationSource(name="app", folder=folder)


def test_files_are_read_in_their_order(tmp_path: Path) -> None:
    """The number decides; grants and what is no SQL file are no migrations."""
    source = _source(tmp_path, **{"0002_b": "SELECT 2", "0001_a": "SELECT 1", "grants": "GRANT"})
    (tmp_path / "README.md").write_text("how these are made")
    assert [str(migration) for migration in source.read()] == ["app/0001_a.sql", "app/0002_b.sql"]
    assert source.count() == 2
    assert source.grants() == "GRANT"


def test_a_source_without_grants_has_none(tmp_path: Path) -> None:
    """A folder need not have a grants.sql."""
    assert _source(tmp_path).grants() is None


def test_line_ends_do_not_change_a_checksum(tmp_path: Path) -> None:
    """A checkout with Windows line ends is the same migration."""
    source = _source(tmp_path, **{"0001_a": "SELECT 1;\nSELECT 2;\n"})
    (before,) = source.read()
    (tmp_path / "0001_a.sql").write_bytes(b"SELECT 1;\r\nSELECT 2;\r\n")
    (after,) = source.read()
    assert before.checksum == after.checksum


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0001_a", "0003_c"], r"app/0003_c\.sql: number 0002 is expected"),
        (["0002_b"], r"app/0002_b\.sql: number 0001 is expected"),
        (["0001_a", "0001_b"], r"app/0001_b\.sql: number 0002 is expected"),
        (["0000_a"], r"app/0000_a\.sql: number 0001 is expected"),
        (["1_a"], r"name a migration like 0001_what_it_does\.sql"),
        (["0001-a"], r"name a migration like 0001_what_it_does\.sql"),
    ],
)
def test_a_folder_out_of_order_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    """A gap, a number that is there twice and a name that does not fit are errors, each with its file."""
    with pytest.raises(MigrationError, match=message):
        _source(tmp_path, **dict.fromkeys(names, "SELECT 1")).read()


@pytest.mark.parametrize("name", ["", "App", "a b", "1a", "a" * 64])
def test_a_source_needs_a_plain_name(tmp_path: Path, name: str) -> None:
    """It is what a database remembers, so it is checked."""
    with pytest.raises(MigrationError, match="needs a name of 1 to 63"):
        MigrationSource(name=name, folder=tmp_path)


def test_what_is_missing_comes_after_what_is_there(tmp_path: Path) -> None:
    """A database that has the first lacks the rest; one that has all lacks none."""
    migrations = _source(tmp_path, **{"0001_a": "SELECT 1", "0002_b": "SELECT 2"}).read()
    first, second = migrations
    assert find_missing("app", migrations, {}) == migrations
    assert find_missing("app", migrations, {1: first.checksum}) == [second]
    assert find_missing("app", migrations, {1: first.checksum, 2: second.checksum}) == []


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """The sentence names both numbers and says what to do."""
    migrations = _source(tmp_path, **{"0001_a": "SELECT 1"}).read()
    with pytest.raises(MigrationError, match=r"newer than this code: it has migration 0002 of app.* has 1\."):
        find_missing("app", migrations, {1: migrations[0].checksum, 2: "x"})


@pytest.mark.parametrize("applied", [{1: "something else"}, {2: "x"}])
def test_a_changed_or_lost_migration_is_refused(tmp_path: Path, applied: dict[int, str]) -> None:
    """What a database was migrated with must still be what the files say."""
    migrations = _source(tmp_path, **{"0001_a": "SELECT 1", "0002_b": "SELECT 2"}).read()
    with pytest.raises(MigrationError, match=r"app/0001_a\.sql was changed after this database"):
        find_missing("app", migrations, applied)


def test_the_library_brings_its_own() -> None:
    """They are found as package data, wherever the package lies."""
    assert LIBRARY_MIGRATIONS.read()[0].name == "0001_audit_log.sql"
    assert "{service}" in (LIBRARY_MIGRATIONS.grants() or "")

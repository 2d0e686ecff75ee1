"""Migration files: how they are named, numbered and compared."""

from pathlib import Path

import pytest

from watchkeeper.database import MigrationSource
from watchkeeper.database._migrations import LIBRARY_MIGRATIONS, find_missing
from watchkeeper.exceptions import MigrationError


def _source(folder: Path, **files: str) -> MigrationSource:
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return MigrationSource(name="app", folder=folder)


def test_files_are_read_in_order(tmp_path: Path) -> None:
    """The number decides; grants, which are optional, and other files are not migrations."""
    source = _source(tmp_path, **{"0002_b": "SELECT 2", "0001_a": "SELECT 1", "grants": "GRANT"})
    (tmp_path / "README.md").write_text("how these are made")
    assert [str(migration) for migration in source.read()] == ["app/0001_a.sql", "app/0002_b.sql"]
    assert source.count() == 2
    assert source.grants() == "GRANT"
    (tmp_path / "grants.sql").unlink()
    assert source.grants() is None


def test_line_ends_do_not_change_a_checksum(tmp_path: Path) -> None:
    """A checkout with Windows line ends has the same migrations."""
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
    """A gap, a duplicate number and a malformed name are errors that name the file."""
    with pytest.raises(MigrationError, match=message):
        _source(tmp_path, **dict.fromkeys(names, "SELECT 1")).read()


@pytest.mark.parametrize("name", ["", "App", "a b", "1a", "a" * 64])
def test_a_source_needs_a_plain_name(tmp_path: Path, name: str) -> None:
    """The name is stored in the database, so its characters are restricted."""
    with pytest.raises(MigrationError, match="needs a name of 1 to 63"):
        MigrationSource(name=name, folder=tmp_path)


def test_missing_migrations_follow_the_applied_ones(tmp_path: Path) -> None:
    """A database with the first migration lacks the rest; one with all lacks none."""
    migrations = _source(tmp_path, **{"0001_a": "SELECT 1", "0002_b": "SELECT 2"}).read()
    first, second = migrations
    assert find_missing("app", migrations, {}) == migrations
    assert find_missing("app", migrations, {1: first.checksum}) == [second]
    assert find_missing("app", migrations, {1: first.checksum, 2: second.checksum}) == []


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """The error has both numbers and says what to do."""
    migrations = _source(tmp_path, **{"0001_a": "SELECT 1"}).read()
    with pytest.raises(MigrationError, match=r"newer than this code: it has migration 0002 of app.* has 1\."):
        find_missing("app", migrations, {1: migrations[0].checksum, 2: "x"})


@pytest.mark.parametrize("applied", [{1: "something else"}, {2: "x"}])
def test_a_changed_or_lost_migration_is_refused(tmp_path: Path, applied: dict[int, str]) -> None:
    """The applied migrations must match the files."""
    migrations = _source(tmp_path, **{"0001_a": "SELECT 1", "0002_b": "SELECT 2"}).read()
    with pytest.raises(MigrationError, match=r"app/0001_a\.sql was changed after this database"):
        find_missing("app", migrations, applied)


def test_the_library_has_migrations() -> None:
    """They are read as package data."""
    assert LIBRARY_MIGRATIONS.read()[0].name == "0001_audit_log.sql"
    assert "{service}" in (LIBRARY_MIGRATIONS.grants() or "")

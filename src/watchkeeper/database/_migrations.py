"""Numbered migrations as plain SQL files: read, checked, and compared with what a database has."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MigrationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from importlib.resources.abc import Traversable

_FILE: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_SOURCE: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_GRANTS: Final = "grants.sql"


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One numbered file.

    Args:
        source: Name of the source that it belongs to.
        number: Its place in the order, from 1.
        name: The file's name.
        sql: What it does, in one transaction.
        checksum: Of its text, to notice a file that was changed after it ran.
    """

    source: str
    number: int
    name: str
    sql: str
    checksum: str

    def __str__(self) -> str:
        return f"{self.source}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationSource:
    """A folder of migrations: 0001_name.sql, 0002_name.sql and so on, without a gap.

    A `grants.sql` beside them is run after each migrating, as the owner of the tables, with `{service}`
    replaced by the role that the service connects as.

    Args:
        name: Under which a database remembers what it has of this source.
        folder: Where the files lie, such as `importlib.resources.files("package") / "sql"`.

    Raises:
        MigrationError: The name is not usable.
    """

    name: str
    folder: Traversable

    def __post_init__(self) -> None:
        if not _SOURCE.fullmatch(self.name):
            raise MigrationError(
                f"The migration source {self.name!r} needs a name of 1 to 63 lower-case letters, digits,"
                " hyphens and underscores, starting with a letter."
            )

    def read(self) -> list[Migration]:
        """Return the migrations in their order.

        Raises:
            MigrationError: A file's name does not fit, or the numbers have a gap or a duplicate.
        """
        migrations = [self._migration(entry) for entry in sorted(self._files(), key=lambda entry: entry.name)]
        for expected, migration in enumerate(migrations, start=1):
            if migration.number != expected:
                raise MigrationError(
                    f"{migration}: number {expected:04} is expected here. Migrations count from 0001 without"
                    " a gap, and each number is there once."
                )
        return migrations

    def count(self) -> int:
        """Return how many migrations there are, which is the number of the last."""
        return sum(1 for _ in self._files())

    def grants(self) -> str | None:
        """Return the text of `grants.sql`, None without one."""
        entry = self.folder / _GRANTS
        return entry.read_text(encoding="utf-8") if entry.is_file() else None

    def _files(self) -> Iterator[Traversable]:
        return (
            entry for entry in self.folder.iterdir() if entry.name.endswith(".sql") and entry.name != _GRANTS
        )

    def _migration(self, entry: Traversable) -> Migration:
        match = _FILE.fullmatch(entry.name)
        if not match:
            raise MigrationError(
                f"{self.name}/{entry.name}: the name of a migration looks like 0001_what_it_does.sql."
            )
        # read_text has turned \r\n into \n: how a checkout writes its line ends is no change.
        sql = entry.read_text(encoding="utf-8")
        return Migration(
            source=self.name,
            number=int(match[1]),
            name=entry.name,
            sql=sql,
            checksum=hashlib.sha256(sql.encode()).hexdigest(),
        )


def missing(source: str, migrations: list[Migration], applied: Mapping[int, str]) -> list[Migration]:
    """Return what a database still lacks of one source, in order.

    Args:
        source: The source's name.
        migrations: What the code has.
        applied: Checksum by number of what the database has.

    Raises:
        MigrationError: The database is newer than the code, or what it has is not what the code has.
    """
    newest = max(applied, default=0)
    if newest > len(migrations):
        raise MigrationError(
            f"The database is newer than this code: it has migration {newest:04} of {source}, the code knows"
            f" {len(migrations)}. Start the newer release, or restore the backup from before it."
        )
    for migration in migrations[:newest]:
        if applied.get(migration.number) != migration.checksum:
            raise MigrationError(
                f"{migration} is not what this database was migrated with: put the file back as it was, and"
                " make the change in a new migration."
            )
    return migrations[newest:]


LIBRARY_MIGRATIONS: Final = MigrationSource(
    name="watchkeeper", folder=files("watchkeeper") / "database" / "migrations"
)

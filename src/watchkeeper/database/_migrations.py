"""Numbered migrations in plain SQL files: reads them and compares them with those of a database."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from watchkeeper.database._queries import Queries
from watchkeeper.exceptions import MigrationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from importlib.resources.abc import Traversable

_FILE: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_SOURCE: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_GRANTS: Final = "grants.sql"

QUERIES: Final = Queries.load("watchkeeper.database", "migrations")


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One numbered file; the checksum shows whether it was changed after it ran."""

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

    Each runs in one transaction as the owner of the tables. A `grants.sql` next to them runs after every
    migration, with `{service}` replaced by the role that the service connects as.

    Args:
        name: Identifies the source in the database's table of applied migrations.
        folder: The folder, such as `importlib.resources.files("package") / "sql"`.
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
        """Return the migrations in order, or raise `MigrationError` if the files are misnumbered."""
        migrations = [self._migration(entry) for entry in sorted(self._files(), key=lambda entry: entry.name)]
        for expected, migration in enumerate(migrations, start=1):
            if migration.number != expected:
                raise MigrationError(
                    f"{migration}: number {expected:04} is expected here. Number migrations from 0001 without"
                    " a gap or a duplicate."
                )
        return migrations

    def count(self) -> int:
        """Return the number of migrations."""
        return sum(1 for _ in self._files())

    def grants(self) -> str | None:
        """Return the text of `grants.sql`, or None if there is none."""
        entry = self.folder / _GRANTS
        return entry.read_text(encoding="utf-8") if entry.is_file() else None

    def _files(self) -> Iterator[Traversable]:
        return (
            entry for entry in self.folder.iterdir() if entry.name.endswith(".sql") and entry.name != _GRANTS
        )

    def _migration(self, entry: Traversable) -> Migration:
        match = _FILE.fullmatch(entry.name)
        if not match:
            raise MigrationError(f"{self.name}/{entry.name}: name a migration like 0001_what_it_does.sql.")
        # read_text turns \r\n into \n, so the line ends of a checkout do not change the checksum.
        sql = entry.read_text(encoding="utf-8")
        return Migration(
            source=self.name,
            number=int(match[1]),
            name=entry.name,
            sql=sql,
            checksum=hashlib.sha256(sql.encode()).hexdigest(),
        )


def find_missing(source: str, migrations: list[Migration], applied: Mapping[int, str]) -> list[Migration]:
    """Return the migrations that a database lacks; `applied` has the checksums of those it has, by number."""
    newest = max(applied, default=0)
    if newest > len(migrations):
        raise MigrationError(
            f"The database is newer than this code: it has migration {newest:04} of {source}, the code has"
            f" {len(migrations)}. Start the newer release, or restore a backup from before it."
        )
    for migration in migrations[:newest]:
        if applied.get(migration.number) != migration.checksum:
            raise MigrationError(
                f"{migration} was changed after this database was migrated with it: restore the file, and"
                " make the change in a new migration."
            )
    return migrations[newest:]


LIBRARY_MIGRATIONS: Final = MigrationSource(
    name="watchkeeper", folder=files("watchkeeper") / "database" / "migrations"
)

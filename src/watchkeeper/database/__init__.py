"""The pool, the migrations and the named queries: everything that speaks to PostgreSQL goes through here."""

from watchkeeper.database._database import Database
from watchkeeper.database._migrations import LIBRARY_MIGRATIONS, MigrationSource
from watchkeeper.database._migrator import Patience
from watchkeeper.database._owner import Owner
from watchkeeper.database._queries import Queries

__all__ = ["LIBRARY_MIGRATIONS", "Database", "MigrationSource", "Owner", "Patience", "Queries"]

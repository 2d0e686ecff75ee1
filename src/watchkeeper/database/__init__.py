"""The pool, the migrations and the named queries: everything that speaks to PostgreSQL goes through here."""

from watchkeeper.database._database import Database
from watchkeeper.database._migrations import MigrationSource
from watchkeeper.database._queries import Queries

__all__ = ["Database", "MigrationSource", "Queries"]

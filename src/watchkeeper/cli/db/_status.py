"""`db status`: which database this is, and what it has been migrated to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from watchkeeper.cli.db._pg_tools import database_service
from watchkeeper.database import Queries

if TYPE_CHECKING:
    import argparse

    from watchkeeper.cli._screen import Screen
    from watchkeeper.keeper import Watchkeeper

_QUERIES: Final = Queries.load("watchkeeper.cli.db", "operator")


def add(actions: argparse._SubParsersAction[Any]) -> None:
    """Describe the command."""
    parser = actions.add_parser("status", help="which database this is, and its migrations")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.set_defaults(execute=execute, migrate=False)


async def execute(keeper: Watchkeeper, _arguments: argparse.Namespace, screen: Screen) -> int:
    """Show the status; 1 if migrations are pending."""
    service = database_service(keeper)
    async with service.database.connection() as conn:
        row = await (await conn.execute(_QUERIES["database"])).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    name, role, version, size = row
    pending = await service.pending()
    # Before the tables are there, nobody can say how the service's role stands to them.
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
        screen.document(document)
        return int(pending)
    where = "external" if service.server is None else f"embedded, data in {service.server.data_dir}"
    screen.say(f"database {name} as {role}: PostgreSQL {version} ({where}), {size / 2**20:.1f} MiB")
    screen.say("migrations: some are pending, see db migrate" if pending else "migrations: all applied")
    for warning in warnings:
        screen.say(f"warning: {warning}")
    return int(pending)

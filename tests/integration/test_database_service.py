"""The database service at the start: unavailable, recovered, refused, with excess privileges."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.postgres import DatabaseUrls, PostgresServer
from watchkeeper.database._service import DatabaseService
from watchkeeper.exceptions import DatabaseUnavailableError, MigrationError
from watchkeeper.settings import Secret, Settings


class _Lines(list[dict[str, Any]]):
    def __init__(self) -> None:
        super().__init__()
        self.refused = asyncio.Event()

    def __call__(self, level: str, /, **fields: Any) -> None:
        self.append({"level": level, **fields})
        if fields["status"] == "refused":
            self.refused.set()

    def statuses(self) -> list[str]:
        return [line["status"] for line in self]


def _settings(urls: DatabaseUrls, folder: Path, *, owner: bool = True) -> Settings:
    return Settings(
        service="shop",
        state_dir=folder,
        database_url=Secret(urls.url if owner else urls.owner_url),
        database_owner_url=Secret(urls.owner_url) if owner else None,
    )


async def test_an_available_database_is_opened_and_migrated(
    database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    """After opening, the tables can be used, and one line was logged."""
    lines = _Lines()
    service = DatabaseService(_settings(database_urls, tmp_path), [], lines)
    await service.open()
    try:
        assert service.migrated
        assert service.server is None
        assert service.free_space() is None
        await service.ping()
        assert lines.statuses() == ["opened"]
    finally:
        await service.close()
    with pytest.raises(DatabaseUnavailableError, match="The database is not open"):
        await service.ping()


async def test_free_space_of_the_embedded_server(folder: Path) -> None:
    """It is None where the disk cannot be read, and for an external server."""
    service = DatabaseService(Settings(service="shop", state_dir=folder), [], _Lines())
    assert service.free_space() is None
    await service.open(migrate=False)
    try:
        assert service.server is not None
        free, size = service.free_space() or (0, 0)
        assert size == shutil.disk_usage(folder).total
        assert 0 < free < size
        data = service.server.data_dir
        data.rename(data.with_name("elsewhere"))
        assert service.free_space() is None
        data.with_name("elsewhere").rename(data)
    finally:
        await service.close()


async def test_an_unavailable_server_is_awaited(postgres_private: PostgresServer, tmp_path: Path) -> None:
    """The service starts without its database and migrates within seconds of its return."""
    urls = postgres_private.create_database()
    postgres_private.stop()
    lines = _Lines()
    service = DatabaseService(_settings(urls, tmp_path), [], lines)
    async with asyncio.timeout(60):
        await service.open()
    try:
        assert not service.migrated
        assert lines.statuses() == ["waiting"]
        with pytest.raises(DatabaseUnavailableError, match=r".+"):
            await service.ping()
        postgres_private.start()
        async with asyncio.timeout(60):
            await service.wait_until_migrated()
        await service.ping()
        assert lines.statuses() == ["waiting", "migrated", "opened"]
    finally:
        await service.close()


async def test_closing_ends_the_wait(postgres_private: PostgresServer, tmp_path: Path) -> None:
    """A service stops at once while it waits for its database."""
    urls = postgres_private.create_database()
    postgres_private.stop()
    service = DatabaseService(_settings(urls, tmp_path), [], _Lines())
    await service.open()
    async with asyncio.timeout(60):
        await service.close()


def _pretend_newer(urls: DatabaseUrls) -> None:
    with psycopg.connect(urls.owner_url) as conn:
        conn.execute(
            "INSERT INTO watchkeeper_migrations (source, number, name, checksum)"
            " VALUES ('watchkeeper', 999, '0999_future.sql', repeat('0', 64))"
        )


async def test_a_newer_database_stops_the_start(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """Code that is older than its database does not change it."""
    _pretend_newer(database_urls)
    service = DatabaseService(_settings(database_urls, tmp_path), [], _Lines())
    with pytest.raises(MigrationError, match="newer"):
        await service.open()
    await service.close()


async def test_a_newer_database_after_an_outage_is_reported(
    postgres_private: PostgresServer, tmp_path: Path
) -> None:
    """The running service stays not ready, and its line says what to do."""
    urls = postgres_private.create_database()
    first = DatabaseService(_settings(urls, tmp_path), [], _Lines())
    await first.open()
    await first.close()
    _pretend_newer(urls)
    postgres_private.stop()
    lines = _Lines()
    service = DatabaseService(_settings(urls, tmp_path), [], lines)
    await service.open()
    try:
        postgres_private.start()
        async with asyncio.timeout(60):
            await lines.refused.wait()
        assert not service.migrated
        assert lines[-1]["level"] == "fatal"
        assert "newer" in lines[-1]["msg"]
    finally:
        await service.close()


async def test_a_role_that_owns_the_audit_log_is_reported(
    database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    """The service works with one role, and a line reports its excess privileges."""
    lines = _Lines()
    service = DatabaseService(_settings(database_urls, tmp_path, owner=False), [], lines)
    await service.open()
    await service.close()
    weak = [line for line in lines if line["status"] == "excess_privilege"]
    assert weak
    assert all(line["level"] == "warn" for line in weak)

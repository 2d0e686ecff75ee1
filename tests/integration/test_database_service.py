"""The keeper's database at the start: away, back, refused, weak."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from watchkeeper.database._service import DatabaseService
from watchkeeper.exceptions import DatabaseUnavailableError, MigrationError
from watchkeeper.settings import Secret, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import DatabaseUrls, PostgresServer


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


async def test_a_database_that_is_there_is_opened_and_migrated(
    database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    """Opening leaves a database whose tables can be used, and says so in one line."""
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


async def test_the_disk_of_the_embedded_server_is_known(folder: Path) -> None:
    """Retention waits while it is nearly full; where it cannot be asked, nothing is known."""
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


async def test_a_server_that_is_away_is_waited_for(postgres_private: PostgresServer, tmp_path: Path) -> None:
    """The service starts without its database, and has it within seconds of its return."""
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


async def test_closing_ends_the_waiting(postgres_private: PostgresServer, tmp_path: Path) -> None:
    """A service that is stopped before its database came ends at once."""
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
    """Code that is older than its database does not touch it."""
    _pretend_newer(database_urls)
    service = DatabaseService(_settings(database_urls, tmp_path), [], _Lines())
    with pytest.raises(MigrationError, match="newer"):
        await service.open()
    await service.close()


async def test_a_newer_database_that_comes_later_is_said_once(
    postgres_private: PostgresServer, tmp_path: Path
) -> None:
    """A service that already runs stays not ready, and its line says what to do."""
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


async def test_a_role_that_owns_its_audit_log_is_warned_of(
    database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    """With one role for everything the service works, and the line says what is weaker."""
    lines = _Lines()
    service = DatabaseService(_settings(database_urls, tmp_path, owner=False), [], lines)
    await service.open()
    await service.close()
    weak = [line for line in lines if line["status"] == "excess_privilege"]
    assert weak
    assert all(line["level"] == "warn" for line in weak)

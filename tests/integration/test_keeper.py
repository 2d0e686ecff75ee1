"""The whole keeper, in this process, on a real database."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

import watchkeeper
from support.postgres import DatabaseUrls
from watchkeeper import Policy, Secret, Settings, Watchkeeper
from watchkeeper.exceptions import (
    ConfigurationError,
    DatabaseUnavailableError,
    MigrationError,
    PolicyRefusedError,
)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Say hello, without a lifespan."""
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan here")
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def _settings(urls: DatabaseUrls, folder: Path, **more: Any) -> Settings:
    return Settings(
        service="shop",
        state_dir=folder,
        database_url=Secret(urls.url),
        database_owner_url=Secret(urls.owner_url),
        **more,
    )


@asynccontextmanager
async def _served(keeper: Watchkeeper) -> AsyncIterator[httpx.AsyncClient]:
    """Start the keeper as a server's lifespan would, with a client of its app."""
    app = keeper.wrap(hello)
    await keeper.start()
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client
    finally:
        await keeper.stop()


@pytest.fixture
def lines_to() -> Any:
    """Return the writing end of a pipe that is not read."""
    reader, writer = os.pipe()
    yield writer
    os.close(reader)
    os.close(writer)


async def test_readiness_needs_database_and_migrations(
    database_urls: DatabaseUrls, tmp_path: Path, lines_to: int
) -> None:
    """A service is ready when the database answers, is migrated, and no shutdown has begun."""
    keeper = Watchkeeper(
        "shop", settings=_settings(database_urls, tmp_path), database=True, lines_to=lines_to
    )
    async with _served(keeper) as client:
        answer = await client.get("/readyz")
        assert answer.json()["checks"] == {"running": True, "database": True, "migrations": True}
        assert answer.status_code == 200
        keeper.begin_shutdown()
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["running"] is False


async def test_details_need_the_token(database_urls: DatabaseUrls, tmp_path: Path, lines_to: int) -> None:
    """Details of the service are shown only with the token."""
    settings = _settings(database_urls, tmp_path, metrics_token=Secret("hush"), retention=False)
    policy = Policy(table="events", age_column="at", keep=timedelta(days=1))
    keeper = Watchkeeper("shop", settings=settings, retention=[policy], lines_to=lines_to)
    async with _served(keeper) as client:
        assert (await client.get("/health/detailed")).json() == {"status": "ok", "checks": {"db": True}}
        answer = await client.get("/health/detailed", headers={"Authorization": "Bearer hush"})
        details = answer.json()["details"]
        assert (details["service"], details["database"], details["migrated"]) == ("shop", "external", True)
        assert details["retention"] is False


async def test_gauges_are_refreshed_before_a_scrape(
    database_urls: DatabaseUrls, tmp_path: Path, lines_to: int
) -> None:
    """A scrape shows current values, and a refresh that fails or hangs does not affect the others."""
    keeper = Watchkeeper(
        "shop", settings=_settings(database_urls, tmp_path), database=True, lines_to=lines_to
    )
    guests = keeper.gauge("guests", "How many are here.")

    @keeper.on_scrape
    async def count() -> None:
        guests.set(7)

    @keeper.on_scrape
    async def fail() -> None:
        raise ValueError("miscounted")

    @keeper.on_scrape
    async def hang() -> None:
        await asyncio.sleep(60)

    async with _served(keeper) as client:
        text = (await client.get("/metrics")).text
        assert "guests 7.0" in text
        assert "db_up 1.0" in text
        with pytest.raises(ConfigurationError, match="before the app is wrapped"):
            keeper.on_scrape(count)


async def test_a_failed_start_is_undone(database_urls: DatabaseUrls, tmp_path: Path, lines_to: int) -> None:
    """The keeper closes everything and keeps the exception in `failure`."""
    bad = tmp_path / "migrations"
    bad.mkdir()
    (bad / "0001_broken.sql").write_text("CREATE NONSENSE;")
    source = watchkeeper.MigrationSource(name="shop", folder=bad)
    keeper = Watchkeeper(
        "shop", settings=_settings(database_urls, tmp_path), migrations=[source], lines_to=lines_to
    )
    with pytest.raises(MigrationError, match=r"0001_broken\.sql"):
        await keeper.start()
    assert isinstance(keeper.failure, MigrationError)
    with pytest.raises(DatabaseUnavailableError, match="not open"):
        _ = keeper.database


async def test_running_opens_database_and_retention_without_the_schedule(
    database_urls: DatabaseUrls, tmp_path: Path, lines_to: int
) -> None:
    """`running` opens the database and retention, prunes nothing itself, and closes both."""
    policy = Policy(table="events", age_column="at", keep=timedelta(days=1))
    keeper = Watchkeeper(
        "shop", settings=_settings(database_urls, tmp_path), retention=[policy], lines_to=lines_to
    )
    async with keeper.running():
        assert [one.policy for one in await keeper.retention.status()] == [policy]
        async with keeper.database.connection() as conn:
            cursor = await conn.execute("SELECT count(*) FROM retention_runs")
            assert await cursor.fetchone() == (0,)
    with pytest.raises(ConfigurationError, match="There is no retention"):
        _ = keeper.retention


async def test_metrics_are_closed_off_loopback_without_a_token() -> None:
    """A log line tells the operator why."""
    reader, writer = os.pipe()
    keeper = Watchkeeper("shop", settings=Settings(service="shop", host="0.0.0.0"), lines_to=writer)  # noqa: S104
    async with _served(keeper) as client:
        assert (await client.get("/metrics")).status_code == 403
    os.close(writer)
    with os.fdopen(reader) as written:
        lines = [json.loads(line) for line in written]
    assert {"level": "warn", "type": "metrics", "status": "closed"}.items() <= lines[0].items()


async def test_removed_protection_of_the_audit_log_is_reported(
    database_urls: DatabaseUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's DDL cannot be prevented; a line and a gauge report it and its repair."""
    reader, writer = os.pipe()
    keeper = Watchkeeper("shop", settings=_settings(database_urls, tmp_path), database=True, lines_to=writer)
    monkeypatch.setattr(keeper._audit, "_interval", 0.0)
    with psycopg.connect(database_urls.owner_url, autocommit=True) as owner:
        async with _served(keeper) as client:
            assert "audit_log_protected 1.0" in (await client.get("/metrics")).text
            owner.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
            for _ in range(2):
                assert "audit_log_protected 0.0" in (await client.get("/metrics")).text
            owner.execute("ALTER TABLE audit_log ENABLE ALWAYS TRIGGER audit_log_append_only")
            owner.execute("ALTER TABLE audit_log ENABLE ALWAYS TRIGGER audit_log_append_only_rows")
            assert "audit_log_protected 1.0" in (await client.get("/metrics")).text
    os.close(writer)
    with os.fdopen(reader) as written:
        lines = [line for line in map(json.loads, written) if line.get("type") == "audit"]
    assert [line["status"] for line in lines] == ["unprotected", "unprotected", "protected"]
    assert "not ENABLE ALWAYS" in lines[0]["msg"]


async def test_a_service_without_a_database_may_have_a_check_named_db(tmp_path: Path, lines_to: int) -> None:
    """Such a check is the service's own, and `/health` reports it."""

    class Check:
        name = "db"

        async def __call__(self) -> None:
            return

    keeper = Watchkeeper(
        "shop", settings=Settings(service="shop", state_dir=tmp_path), checks=[Check()], lines_to=lines_to
    )
    async with _served(keeper) as client:
        assert (await client.get("/health")).json() == {"status": "ok", "db": "connected"}


def test_contradictions_are_refused_at_declaration() -> None:
    """Contradictory options and forbidden policies are errors before anything runs."""
    policy = Policy(table="events", age_column="at", keep=timedelta(days=1))
    with pytest.raises(ConfigurationError, match="need a database"):
        Watchkeeper("shop", settings=Settings(service="shop"), database=False, retention=[policy])
    with pytest.raises(PolicyRefusedError, match="audit_log"):
        Policy(table="audit_log", age_column="created_at", keep=timedelta(days=1))
    with pytest.raises(PolicyRefusedError, match="events"):
        Watchkeeper("shop", settings=Settings(service="shop"), retention=[policy, policy])
    alone = Watchkeeper("shop", settings=Settings(service="shop"))
    with pytest.raises(ConfigurationError, match="has no database"):
        _ = alone.database
    assert alone.database_service is None


async def test_parts_can_be_switched_off(tmp_path: Path, lines_to: int) -> None:
    """Without metrics and health their paths are 404, and the service still answers."""
    settings = Settings(service="shop", state_dir=tmp_path, metrics=False, health=False, request_lines=False)
    async with _served(Watchkeeper("shop", settings=settings, lines_to=lines_to)) as client:
        assert (await client.get("/hello")).text == "hello"
        found = {path: (await client.get(path)).status_code for path in ("/metrics", "/health", "/livez")}
        assert found == {"/metrics": 404, "/health": 404, "/livez": 200}


def test_the_package_shows_its_public_names() -> None:
    """`dir` lists the public names, each of them can be imported, and a wrong one is an AttributeError."""
    assert dir(watchkeeper) == sorted(watchkeeper.__all__)
    assert all(getattr(watchkeeper, name) is not None for name in watchkeeper.__all__)
    with pytest.raises(AttributeError, match="no attribute 'watch'"):
        _ = watchkeeper.watch

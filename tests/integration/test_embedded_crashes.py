# ruff: noqa: ASYNC220, ASYNC240 - nothing else runs on these loops
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.embedded import (
    Starter,
    ask,
    postmaster_of,
    processes_over,
    read_log,
    server_over,
    supervisor_of,
    wait_until,
)
from watchkeeper.database.embedded._supervisor_process import _BOOT, _ENTRY_FILE, _PACKAGE


def said(reports: list[tuple[str, str]], text: str) -> bool:
    """Say whether a report contains `text`."""
    return any(text in sentence for _, sentence in reports)


@pytest.mark.parametrize("both", [False, True], ids=["parent", "parent and supervisor"])
async def test_embedded_killed_parent_leaves_no_orphan(
    state: Path, starter: Callable[..., Starter], *, both: bool
) -> None:
    """After kill -9 of its parent, also with its supervisor, the server stops cleanly and keeps its data."""
    owner = starter(state)
    await ask(owner.wait_for("started")["url"], "INSERT INTO kept VALUES (1)")
    supervisor = supervisor_of(state)
    owner.kill()
    if both:
        os.kill(supervisor, signal.SIGKILL)
    assert await asyncio.to_thread(wait_until, lambda: not processes_over(state)) < 5
    assert "database system is shut down" in (state / "postgres.log").read_text()
    async with server_over(state) as server:
        assert await ask(server.url, "SELECT count(*) FROM kept") == 1


async def test_embedded_start_follows_a_kill_at_once(state: Path, starter: Callable[..., Starter]) -> None:
    """A start right after kill -9 of everything waits for the old server's remains, then recovers."""
    owner = starter(state)
    await ask(owner.wait_for("started")["url"], "INSERT INTO kept VALUES (1)")
    supervisor, postmaster = supervisor_of(state), postmaster_of(state)
    os.kill(supervisor, signal.SIGSTOP)  # so that none of them notices that another one dies
    owner.kill()
    for number in (postmaster, supervisor):
        os.kill(number, signal.SIGKILL)
    async with server_over(state) as server:
        assert await ask(server.url, "SELECT count(*) FROM kept") == 1
        assert "automatic recovery in progress" in read_log(server)


async def test_embedded_killed_supervisor_is_replaced(state: Path) -> None:
    """Kill -9 of the supervisor ends the server; the parent restarts both and reports it."""
    reports: list[tuple[str, str]] = []
    async with server_over(state, report=lambda *line: reports.append(line)) as server:
        await ask(server.url, "INSERT INTO kept VALUES (1)")
        old = postmaster_of(state)
        os.kill(supervisor_of(state), signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: not Path(f"/proc/{old}").exists())
        assert await ask(server.url, "SELECT count(*) FROM kept") == 1
        assert server.owner
    assert [level for level, _ in reports] == ["warn", "info"]
    assert said(reports, "was killed")
    assert not processes_over(state)


async def test_embedded_supervisor_killed_before_the_roles_are_made(state: Path) -> None:
    """A start whose supervisor dies just after it was ready starts another one."""
    async with server_over(state) as server:
        assert server._watching is not None
        server._watching.cancel()
        os.kill(supervisor_of(state), signal.SIGKILL)
        await server._own_or_attach()
        assert server.owner
        assert await ask(server.url, "SELECT 1") == 1


@pytest.mark.parametrize(
    ("spec", "event"),
    [
        (b"", b""),
        (b"{}\n", b'{"event": "failed", "stage": "supervisor", "code": null, "log": ["Traceback'),
        (b'{"lock_fd": 99}\n', b'{"event": "failed", "stage": "system", "code": null, "log": ["[Errno 9]'),
    ],
)
def test_embedded_supervisor_with_an_invalid_spec(spec: bytes, event: bytes) -> None:
    """Without a spec it ends; unexpected input is reported to the parent."""
    command = [sys.executable, "-I", "-c", _BOOT, _PACKAGE, str(_ENTRY_FILE)]
    done = subprocess.run(command, input=spec, capture_output=True, check=False)
    assert done.stdout.startswith(event)
    assert bool(done.stdout) == bool(done.returncode) == bool(event)
    assert not done.stderr


async def test_embedded_killed_server_is_restarted(state: Path) -> None:
    """After kill -9 of PostgreSQL the supervisor restarts it, and both events are reported."""
    reports: list[tuple[str, str]] = []
    async with server_over(state, report=lambda *line: reports.append(line)) as server:
        await ask(server.url, "INSERT INTO kept VALUES (1)")
        old = postmaster_of(state)
        os.kill(old, signal.SIGKILL)
        assert await ask(server.url, "SELECT count(*) FROM kept WHERE id > 0") == 1
        assert postmaster_of(state) != old
        assert server.owner
        await asyncio.to_thread(wait_until, lambda: said(reports, "is back after"))
    assert [level for level, _ in reports] == ["error", "info"]
    assert said(reports, "exited unexpectedly (status -9)")


async def test_embedded_server_restarts_despite_a_busy_backend(state: Path) -> None:
    """A backend that computes does not notice that its server was killed; the next start ends it."""
    async with server_over(state) as server:
        async with await psycopg.AsyncConnection.connect(server.url) as conn:
            busy = asyncio.create_task(conn.execute("DO $$ BEGIN LOOP END LOOP; END $$"))
            await asyncio.sleep(0.3)
            old = postmaster_of(state)
            os.kill(old, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError, match=r"closed|terminat"):
                await busy
        assert await ask(server.url, "SELECT 1") == 1


async def test_embedded_signals_to_the_supervisor(state: Path) -> None:
    """SIGTERM gives the parent time to drain; SIGINT stops the server, and the parent restarts it."""
    reports: list[tuple[str, str]] = []
    async with server_over(state, report=lambda *line: reports.append(line)) as server:
        first = supervisor_of(state)
        os.kill(first, signal.SIGHUP)
        os.kill(first, signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert await ask(server.url, "SELECT 1", within=0) == 1
        os.kill(first, signal.SIGINT)
        await asyncio.to_thread(wait_until, lambda: supervisor_of(state) != first)
        assert await ask(server.url, "SELECT 1") == 1
        assert "received fast shutdown request" in read_log(server)


async def test_embedded_server_ends_with_its_service_under_systemd(state: Path) -> None:
    """When SIGTERM reaches server and supervisor together, clients finish and nothing is restarted."""
    async with server_over(state) as server:
        async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as conn:
            supervisor = supervisor_of(state)
            for number in (supervisor, postmaster_of(state)):
                os.kill(number, signal.SIGTERM)
            await asyncio.sleep(0.3)
            await conn.execute("INSERT INTO kept VALUES (1)")
        # The server ends with its last client, and the supervisor with the server.
        await asyncio.to_thread(wait_until, lambda: not Path(f"/proc/{supervisor}/cwd").exists())


async def test_embedded_server_that_does_not_stop_is_killed(state: Path) -> None:
    """A server that hangs delays its stop for a limited time, and recovers at the next start."""
    async with server_over(state, stop_timeout=timedelta(seconds=0.1)) as server:
        await ask(server.url, "INSERT INTO kept VALUES (1)")
        os.kill(postmaster_of(state), signal.SIGSTOP)
    await asyncio.to_thread(wait_until, lambda: not processes_over(state))
    async with server_over(state) as server:
        assert await ask(server.url, "SELECT count(*) FROM kept") == 1


async def test_embedded_ctrl_c_reaches_only_the_parent(state: Path, starter: Callable[..., Starter]) -> None:
    """SIGINT to the foreground process group stops the parent, which then stops the server."""
    owner = starter(state)
    owner.wait_for("started")
    supervisor = supervisor_of(state)
    assert os.getpgid(supervisor) != os.getpgid(owner.pid)
    os.killpg(owner.pid, signal.SIGINT)
    owner.wait_for("stopped")
    assert not processes_over(state)


async def test_embedded_forked_child_does_not_keep_the_server(
    state: Path, starter: Callable[..., Starter]
) -> None:
    """A forked child that outlives the parent does not keep the server running."""
    owner = starter(state, fork=True)
    owner.wait_for("started")
    group = os.getpgid(owner.pid)
    owner.kill()
    try:
        assert await asyncio.to_thread(wait_until, lambda: not processes_over(state)) < 5
    finally:
        os.killpg(group, signal.SIGKILL)


async def test_embedded_interrupted_initdb_is_repeated(folder: Path, starter: Callable[..., Starter]) -> None:
    """After kill -9 during initdb, a later start does not take the remains for data."""
    state = folder / "state"
    first = starter(state)
    await asyncio.to_thread(wait_until, lambda: list(state.glob("data.new-*/base")))
    number = supervisor_of(state)
    first.kill()
    os.kill(number, signal.SIGKILL)
    assert list(state.glob("data.new-*"))
    assert not (state / "data").exists()
    async with server_over(state) as server:
        assert await ask(server.url, "SELECT 1") == 1
    assert not list(state.glob("data.new-*"))


async def test_embedded_reused_process_id_does_not_stop_the_start(state: Path) -> None:
    """Another process may have the killed server's id, as in a restarted container."""
    with subprocess.Popen(["/bin/sleep", "60"], **_as_owner_of(state / "data")) as other:
        (state / "data" / "postmaster.pid").write_text(
            f"{other.pid}\n{state}/data\n{int(time.time())}\n5432\n{state}/run\n\n  1234  5678\nready   \n"
        )
        os.chown(state / "data" / "postmaster.pid", *_owner(state / "data"))
        async with server_over(state) as server:
            assert await ask(server.url, "SELECT 1") == 1
        other.kill()


def _owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


def _as_owner_of(path: Path) -> dict[str, Any]:
    uid, gid = _owner(path)
    return {"user": uid, "group": gid, "extra_groups": []} if os.geteuid() == 0 else {}


async def test_embedded_server_without_a_supervisor_is_stopped(state: Path) -> None:
    """A server over our data that no supervisor owns is stopped and replaced."""
    async with server_over(state) as server:
        command = Path(f"/proc/{postmaster_of(state)}/cmdline").read_bytes().split(b"\0")[:-1]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **_as_owner_of(state / "data")) as orphan:
        await ask(server.url, "SELECT 1")
        async with server_over(state) as server:
            assert server.owner
            assert orphan.wait() == 0
            assert await ask(server.url, "SELECT 1") == 1

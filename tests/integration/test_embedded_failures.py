import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from support.embedded import (
    Starter,
    ask,
    copy_of,
    make_server,
    postmaster_of,
    processes_over,
    server_over,
    supervisor_of,
    wait_until,
)
from watchkeeper.exceptions import EmbeddedServerError

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


def _mount(*arguments: str) -> None:
    subprocess.run(["/bin/mount", *arguments], check=True)


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A separate file system of 8 MiB, which the test may remount."""
    disk = folder / "disk"
    disk.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", "size=8m,mode=0755", "tmpfs", str(disk))
    except subprocess.CalledProcessError:
        pytest.skip("mounting is not allowed here")
    yield disk
    wait_until(lambda: not processes_over(disk))
    subprocess.run(["/bin/umount", disk], check=True)


@only_root
async def test_embedded_cold_start_on_a_full_disk(small_disk: Path) -> None:
    """The error says so, no files remain, and the next start works once there is space."""
    with pytest.raises(
        EmbeddedServerError, match=rf"The disk that holds {small_disk}/state is full: free some"
    ):
        await make_server(small_disk / "state").start()
    assert not list((small_disk / "state").glob("data*"))
    _mount("-o", "remount,size=200m", str(small_disk))
    async with server_over(small_disk / "state") as server:
        assert await ask(server.url, "SELECT 1") == 1


@only_root
async def test_embedded_disk_that_fills_up_while_it_runs(small_disk: Path, made_state: Path) -> None:
    """A full disk fails statements and is reported; the server continues once there is space."""
    _mount("-o", "remount,size=70m", str(small_disk))
    state = copy_of(made_state, small_disk / "state")
    reports: list[tuple[str, str]] = []
    async with server_over(state, report=lambda *line: reports.append(line)) as server:
        await ask(server.url, "INSERT INTO kept VALUES (1)")
        with pytest.raises(psycopg.OperationalError):
            await ask(server.url, "INSERT INTO kept SELECT n FROM generate_series(1, 10000000) n", within=0)
        await asyncio.to_thread(wait_until, lambda: reports)
        assert reports[0][0] == "error"
        assert re.match(rf"The disk that holds {state} is full: free some space\.", reports[0][1])
        _mount("-o", "remount,size=300m", str(small_disk))
        assert await ask(server.url, "SELECT count(*) FROM kept") == 1
        await ask(server.url, "INSERT INTO kept VALUES (2)")


@only_root
async def test_embedded_state_on_a_read_only_disk(small_disk: Path) -> None:
    """The error names the folder and the reason, for root too."""
    _mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(EmbeddedServerError, match=rf"{small_disk}/state cannot be written \(.*Read-only"):
        await make_server(small_disk / "state").start()


@only_root
async def test_embedded_shared_memory_too_small(state: Path, starter: Callable[..., Starter]) -> None:
    """A container's small /dev/shm is distinguished from a full disk."""
    if str(state).startswith("/dev/shm"):  # noqa: S108 - the folders of these tests
        state = copy_of(state, Path("/var/tmp") / f"wk-shm-{os.getpid()}")  # noqa: S108 - outside /dev/shm
    script = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$0" "$@"'
    refused = starter(state, argv=["/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, sys.executable])
    try:
        sentence = (await asyncio.to_thread(refused.wait_for, "refused"))["sentence"]
    finally:
        shutil.rmtree(state)
    assert sentence.startswith("There is too little shared memory for PostgreSQL: enlarge /dev/shm")


@only_root
async def test_embedded_root_without_capabilities(folder: Path, starter: Callable[..., Starter]) -> None:
    """The error names the capabilities that root needs in the container."""
    for lost in ("setuid", "chown"):
        weakly = ["/usr/bin/setpriv", f"--bounding-set=-{lost}", sys.executable]
        refused = starter(folder / lost, argv=weakly)
        sentence = (await asyncio.to_thread(refused.wait_for, "refused"))["sentence"]
        assert re.search(r"lacks a permission .*SETUID, SETGID, CHOWN and DAC_OVERRIDE", sentence)


async def test_embedded_foreign_data_is_not_touched(folder: Path) -> None:
    """A data folder with other files is refused and left unchanged."""
    kept = folder / "state" / "data" / "letter.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("dear")
    if os.geteuid() == 0:
        shutil.chown(kept.parent, "nobody")
    with pytest.raises(EmbeddedServerError, match="contains files that are not PostgreSQL data"):
        await make_server(folder / "state").start()
    assert kept.read_text() == "dear"


async def test_embedded_file_in_the_way_of_the_state_folder(folder: Path) -> None:
    """The error names the file."""
    (folder / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match=rf"because a file is in the way \({folder}/file"):
        await make_server(folder / "file" / "state").start()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"shared_buffers": "much"}, r'refuses a setting \(invalid value for parameter "shared_buffers"'),
        ({"no_such_setting": "1"}, r'refuses a setting \(unrecognized configuration parameter "no_such_sett'),
    ],
)
async def test_embedded_setting_that_postgresql_refuses(
    state: Path, parameters: dict[str, str], sentence: str
) -> None:
    """The error names the setting and the files that may contain it."""
    with pytest.raises(EmbeddedServerError, match=sentence):
        await make_server(state, parameters=parameters).start()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda data: os.truncate(data / "global" / "pg_control", 100),
            r"is damaged: move it away and restore the last backup",
        ),
        (lambda data: data.chmod(0o755), r"with mode 0700: restore that with chown -R"),
    ],
    ids=["damaged", "readable by others"],
)
async def test_embedded_data_that_cannot_be_used(
    state: Path, change: Callable[[Path], None], sentence: str
) -> None:
    """The error contains the fix."""
    change(state / "data")
    with pytest.raises(EmbeddedServerError, match=sentence):
        await make_server(state).start()


async def test_embedded_owner_that_does_not_answer(state: Path, starter: Callable[..., Starter]) -> None:
    """A start beside a server that hangs ends after its timeout."""
    starter(state).wait_for("started")
    numbers = supervisor_of(state), postmaster_of(state)
    for number in numbers:
        os.kill(number, signal.SIGSTOP)
    try:
        with pytest.raises(EmbeddedServerError, match=r"was not ready within 0\.5 s: see .*postgres\.log"):
            await make_server(state, start_timeout=timedelta(seconds=0.5)).start()
    finally:
        for number in numbers:
            os.kill(number, signal.SIGCONT)


async def test_embedded_failed_takeover_is_reported_and_retried(
    state: Path, starter: Callable[..., Starter]
) -> None:
    """The reason is reported once, and the takeover succeeds once it is fixed."""
    owner = starter(state)
    owner.wait_for("started")
    reports: list[tuple[str, str]] = []
    async with server_over(state, report=lambda *line: reports.append(line)) as server:
        (state / "data").chmod(0o755)
        await asyncio.to_thread(owner.stop)
        await asyncio.to_thread(wait_until, lambda: reports)
        await asyncio.sleep(1)
        ((level, sentence),) = reports
        assert level == "error"
        assert sentence.startswith("The embedded PostgreSQL cannot be started: The folder")
        (state / "data").chmod(0o700)
        assert await ask(server.url, "SELECT 1") == 1
        await asyncio.to_thread(wait_until, lambda: len(reports) > 1)
        assert reports[1] == ("info", "This process now owns the embedded PostgreSQL.")


async def test_embedded_supervisor_that_does_not_run(
    state: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """The error contains what the supervisor printed before it ended."""
    loud = folder / "loud"
    loud.write_text("#!/bin/sh\necho 'library libpython is missing' >&2\nexit 1\n")
    loud.chmod(0o755)
    for program, sentence in (
        ("/bin/false", r"was killed while it started: start again"),
        (str(loud), r"lost the process that runs it: library libpython is missing"),
        ("/nonexistent", r"cannot be started \(.*No such file or directory: '/nonexistent'\)"),
    ):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(EmbeddedServerError, match=sentence):
            await make_server(state).start()


async def test_embedded_server_that_refuses_roles(state: Path) -> None:
    """An error inside the server ends the start with PostgreSQL's message."""
    server = make_server(state, parameters={"default_transaction_read_only": "on"})
    with pytest.raises(EmbeddedServerError, match=r"roles and database: cannot execute .* in a read-only tr"):
        await server.start()
    assert not processes_over(state)

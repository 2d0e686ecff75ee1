"""Worker processes that are killed at any moment: while they count, declare, or add series."""

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.metrics import ScrapedRegistry
from support.workers import samples_of
from watchkeeper.exceptions import MetricError

# Each writes a dot after each event, so at most one event is counted and not yet written.
COUNTS = """
import itertools, os, sys
from pathlib import Path
from support.metrics import ScrapedRegistry

def errors(error):
    os.write(2, f"{error}\\n".encode())

registry = ScrapedRegistry(Path(sys.argv[1]), on_error=errors)
events = registry.counter("events_total", "Events.", ("kind",), max_series=10**6)
level = registry.gauge("level", "Level.", multiprocess_mode="sum")
level.set(1)
for number in itertools.count():
    %s
    os.write(1, b".")
"""
ACTIONS = {
    "counting": 'events.labels(kind="one").inc()',
    "growing": 'events.labels(kind=f"{os.getpid()}-{number}" + "x" * 300).inc()',
    "declaring": 'registry.counter(f"of_{os.getpid()}_{number}_total", "Events.").inc()',
    "observing": (
        'registry._instruments.get("took") or registry.histogram("took", "Time.", buckets=(1, 2));'
        ' registry._instruments["took"].observe(number % 3)'
    ),
}


@pytest.fixture(autouse=True)
def _programs_import_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def _run(program: str, *arguments: Path | str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    environ = os.environ | environ
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def _child(action: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that counts, until the block ends; it has counted one event."""
    # Unbuffered, because the tests also read the pipe by its descriptor.
    with subprocess.Popen(
        [sys.executable, "-c", COUNTS % ACTIONS[action], folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.read(1) == b"."
            yield child
        finally:
            child.kill()


def _counted(registry: ScrapedRegistry) -> float:
    samples = samples_of(registry.text())
    return sum(
        value
        for (name, _), value in samples.items()
        if (name.endswith("_total") and name != "metrics_overflow_total") or name == "took_count"
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_a_process_killed_at_any_moment_loses_nothing(action: str, tmp_path: Path) -> None:
    """The next process adopts what it counted; the sum is what all wrote, plus at most one each."""
    errors: list[MetricError] = []
    registry = ScrapedRegistry(tmp_path, on_error=errors.append)
    written = before = 0.0
    stderr = b""
    kills = 8
    for _ in range(kills):
        with _child(action, tmp_path) as child:
            killer = threading.Timer(random.uniform(0.0, 0.04), child.kill)
            killer.start()
            written += 1
            while child.poll() is None:
                now = _counted(registry)
                assert now >= before
                before = now
                written += len(_read(child))
            killer.join()
            rest, more = child.communicate()
            written += len(rest)
            stderr += more
    counted = _counted(registry)
    sys.stdout.write(f"{action}: {written:.0f} written, {counted:.0f} counted, {kills} kills\n")
    assert written <= counted <= written + kills
    assert stderr == b""
    assert errors == []
    assert registry.sample("level") is None
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"0", "1"}


def _read(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    return os.read(child.stdout.fileno(), 1 << 16)


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ("/bin/mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(folder))
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["/bin/umount", "-l", folder], check=True)


FILLS = """
import sys
from pathlib import Path
from support.metrics import ScrapedRegistry
from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._store import LocalMemory
from watchkeeper.metrics.exposition._reader import Reader

folder = Path(sys.argv[1])
errors = []
registry = ScrapedRegistry(folder, on_error=errors.append, max_series=100_000)
events = registry.counter("events_total", "Events.", ("kind",))
took = registry.histogram("took_seconds", "Time.", buckets=(1, 2))
bound = events.labels(kind="bound")
for number in range(60_000):
    events.labels(kind=str(number)).inc()
    bound.inc()
    took.observe(0.5)
    if number % 4096 == 0:
        registry.sample("took_seconds_count")
text = registry.text()
series = text.count("events_total{") - 1
lost = registry.sample("metrics_overflow_total", metric="events_total")
assert 100 < series < 60_000, series
assert lost == 60_000 - series, (lost, series)
assert registry.sample("events_total", kind="bound") == 60_000
assert registry.sample("took_seconds_count") == 60_000
assert len(errors) == 1 and "there is no room for another series" in str(errors[0]), errors
# Another worker finds no room, and does not harm this one.
other = ScrapedRegistry()
other.counter("events_total", "Events.", ("kind",)).labels(kind="bound").inc()
try:
    other.worker.join(folder)
except MetricError as error:
    assert "No space left" in str(error), error
else:
    raise AssertionError("there was room")
assert other.sample("events_total", kind="bound") == 1
assert registry.sample("events_total", kind="bound") == 60_000
lines = "".join(Reader(LocalMemory(), errors.append, number=99, folder=folder).steps({}))
assert '\\nevents_total{kind="bound"} 60000.0\\n' in lines
print("fine", series, lost)
"""


@only_root
def test_a_full_file_system_only_prevents_new_series(small_memory: Path) -> None:
    """New series are counted as lost and reported once, existing ones count on, and there is no SIGBUS."""
    done = _run(FILLS, small_memory)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.startswith("fine")


FORKS = """
import os, sys
from pathlib import Path
from support.metrics import ScrapedRegistry

registry = ScrapedRegistry()
events = registry.counter("events_total", "Events.")
level = registry.gauge("level", "Level.", multiprocess_mode="sum")
registry.worker.join(Path(sys.argv[1]))
events.inc(100)
level.set(5)
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        # The parent's values are neither counted twice nor shown again.
        for _ in range(20_000):
            events.inc()
        level.inc()
        assert registry.sample("level") >= 6
        os._exit(0)
    children.append(child)
    for _ in range(20_000):
        events.inc()
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
assert registry.sample("events_total") == 100 + 6 * 20_000, registry.sample("events_total")
assert registry.sample("level") == 5, registry.sample("level")
assert registry.worker.number == 0
"""


def test_a_forked_child_counts_in_its_own_slot(tmp_path: Path) -> None:
    """Parent and children keep counting after a fork, and the sum is exact."""
    done = _run(FORKS, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_zombie_is_not_a_running_worker(tmp_path: Path) -> None:
    """The gauges of a killed process are gone at once, even before its parent waits for it."""
    registry = ScrapedRegistry(tmp_path)
    with _child("counting", tmp_path) as child:
        assert registry.sample("level") == 1.0
        assert registry.worker.running_peers() == {1}
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert registry.sample("level") is None
        assert registry.worker.running_peers() == frozenset()
        child.communicate()


def test_workers_that_start_at_once_have_a_slot_each(tmp_path: Path) -> None:
    """Twelve workers for three free slots: each has its own, and nothing is lost."""
    registry = ScrapedRegistry(tmp_path)
    written = 0.0
    for running in (3, 12):
        with contextlib.ExitStack() as stack:
            children = [
                subprocess.Popen(
                    [sys.executable, "-c", COUNTS % ACTIONS["counting"], tmp_path],
                    stdout=subprocess.PIPE,
                    bufsize=0,
                )
                for _ in range(running)
            ]
            for child in children:
                stack.push(child)
                stack.callback(child.kill)
            for child in children:
                written += len(_read(child))
            assert registry.sample("level") == running
            assert registry.worker.running_peers() == set(range(1, running + 1))
            for child in children:
                child.kill()
                written += len(child.communicate()[0])
    assert written <= (registry.sample("events_total", kind="one") or 0.0) <= written + 15
    assert registry.sample("level") is None
    assert len(list(tmp_path.glob("*.values"))) == 13


def test_an_instance_of_one_process_is_removed_with_it(tmp_path: Path) -> None:
    """A process that ends removes its folder; that of a killed one is removed at the next start."""
    program = (
        "import asyncio, os, signal, sys\n"
        "from watchkeeper import Watchkeeper\n"
        "async def main():\n"
        "    keeper = Watchkeeper('shop')\n"
        "    await keeper.start()\n"
        "    await keeper.close()\n"
        "    await keeper.start()\n"
        "    print(*os.listdir(sys.argv[1] + f'/watchkeeper-{os.geteuid()}'), file=sys.stderr)\n"
        "    if sys.argv[2] == 'killed': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    await keeper.close()\n"
        "asyncio.run(main())\n"
    )
    left = []
    for end in ("killed", "ended"):
        done = _run(program, tmp_path, end, WATCHKEEPER_METRICS_DIR=str(tmp_path))
        assert len(done.stderr.split()) == 1, done.stderr
        left.append(len(list(tmp_path.glob("*/*"))))
    assert left == [1, 0]


def test_an_instance_name_joins_unrelated_processes(tmp_path: Path) -> None:
    """Processes with the same WATCHKEEPER_METRICS_INSTANCE are summed, also one after another."""
    program = (
        "import asyncio, sys\n"
        "from support.asgi import fetch\n"
        "from support.workers import samples_of\n"
        "from watchkeeper import Watchkeeper\n"
        "async def main():\n"
        "    keeper = Watchkeeper('shop')\n"
        "    await keeper.start()\n"
        "    events = keeper.counter('events_total', 'Events.')\n"
        "    events.inc(5)\n"
        "    reply = await fetch(keeper.wrap(None), '/metrics')\n"
        "    print(samples_of(reply.body.decode())['events_total', frozenset()], file=sys.stderr)\n"
        "    await keeper.close()\n"
        "asyncio.run(main())\n"
    )
    seen = []
    for name in ("north", "north", "south"):
        environ = {"WATCHKEEPER_METRICS_DIR": str(tmp_path), "WATCHKEEPER_METRICS_INSTANCE": name}
        seen.append(float(_run(program, **environ).stderr))
    assert seen == [5.0, 10.0, 5.0]

"""Processes that count in one folder and are killed at any moment: while they count, declare and grow."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.metrics import ScrapedRegistry
from support.workers import samples_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from watchkeeper.exceptions import MetricError

# Each writes how many events it has counted, after it has; what is counted and not said yet is one at most.
COUNTS = """
import itertools, os, sys
from pathlib import Path
from support.metrics import ScrapedRegistry

def told(error):
    os.write(2, f"{error}\\n".encode())

registry = ScrapedRegistry(Path(sys.argv[1]), on_error=told)
events = registry.counter("events_total", "Events.", ("kind",), max_series=10**6)
level = registry.gauge("level", "Level.", multiprocess_mode="sum")
level.set(1)
for number in itertools.count():
    %s
    os.write(1, b".")
"""
WAYS = {
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


@contextlib.contextmanager
def _child(way: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that counts, from its first event on; it is killed and waited for at the end."""
    # Without a buffer: what was read of the pipe is read nowhere else.
    with subprocess.Popen(
        [sys.executable, "-c", COUNTS % WAYS[way], folder],
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


@pytest.mark.parametrize("way", WAYS)
def test_a_process_that_is_killed_at_any_moment_loses_nothing(way: str, tmp_path: Path) -> None:
    """Its next one adopts what it counted, half-written or not; the sum is what all said, plus one each."""
    told: list[MetricError] = []
    registry = ScrapedRegistry(tmp_path, on_error=told.append)
    said = before = 0.0
    errors = b""
    kills = 8
    for _ in range(kills):
        with _child(way, tmp_path) as child:
            killer = threading.Timer(random.uniform(0.0, 0.04), child.kill)
            killer.start()
            said += 1
            while child.poll() is None:
                now = _counted(registry)
                assert now >= before
                before = now
                said += len(_read(child))
            killer.join()
            rest, more = child.communicate()
            said += len(rest)
            errors += more
    counted = _counted(registry)
    sys.stdout.write(f"{way}: {said:.0f} said, {counted:.0f} counted, {kills} kills\n")
    assert said <= counted <= said + kills
    assert errors == b""
    assert told == []
    assert registry.sample("level") is None
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"0", "1"}


def _read(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    return os.read(child.stdout.fileno(), 1 << 16)


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 256 KiB small."""
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
told = []
registry = ScrapedRegistry(folder, on_error=told.append, max_series=100_000)
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
assert len(told) == 1 and "there is no room for another series" in str(told[0]), told
# One that comes now finds no room for itself, and does no harm to those that are there.
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
lines = "".join(Reader(LocalMemory(), told.append, number=99, folder=folder).steps({}))
assert '\\nevents_total{kind="bound"} 60000.0\\n' in lines
print("fine", series, lost)
"""


@only_root
def test_a_full_file_system_costs_new_series_and_nothing_else(small_memory: Path) -> None:
    """What is new is counted as lost and said once; what is there goes on; nobody gets a SIGBUS."""
    done = subprocess.run(
        [sys.executable, "-c", FILLS, small_memory], capture_output=True, text=True, timeout=60, check=False
    )
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
        # Its parent's figures are not its own: neither counted twice nor shown again.
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


def test_a_fork_counts_in_a_slot_of_its_own(tmp_path: Path) -> None:
    """Parent and children go on counting after a fork, and the sum is exact."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_worker_that_nobody_has_waited_for_is_not_there(tmp_path: Path) -> None:
    """The gauges of a killed process go at once, also while it is a zombie of a parent that sleeps."""
    registry = ScrapedRegistry(tmp_path)
    with _child("counting", tmp_path) as child:
        assert registry.sample("level") == 1.0
        assert registry.worker.running_peers() == {1}
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert registry.sample("level") is None
        assert registry.worker.running_peers() == frozenset()
        child.communicate()


def test_many_that_start_at_once_have_a_slot_each(tmp_path: Path) -> None:
    """Twelve adopters of three dead slots: each gets one of its own, and all figures are there."""
    registry = ScrapedRegistry(tmp_path)
    said = 0.0
    for running in (3, 12):
        with contextlib.ExitStack() as stack:
            children = [
                subprocess.Popen(
                    [sys.executable, "-c", COUNTS % WAYS["counting"], tmp_path],
                    stdout=subprocess.PIPE,
                    bufsize=0,
                )
                for _ in range(running)
            ]
            for child in children:
                stack.push(child)
                stack.callback(child.kill)
            for child in children:
                said += len(_read(child))
            assert registry.sample("level") == running
            assert registry.worker.running_peers() == set(range(1, running + 1))
            for child in children:
                child.kill()
                said += len(child.communicate()[0])
    assert said <= (registry.sample("events_total", kind="one") or 0.0) <= said + 15
    assert registry.sample("level") is None
    assert len(list(tmp_path.glob("*.values"))) == 13


def test_a_process_that_ends_takes_its_own_instance_along(tmp_path: Path) -> None:
    """An instance of one process goes with it; that of a killed one goes with the next start."""
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
    environ = {**os.environ, "WATCHKEEPER_METRICS_DIR": str(tmp_path)}
    left = []
    for end in ("killed", "ended"):
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path, end],
            env=environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert len(done.stderr.split()) == 1, done.stderr
        left.append(len(list(tmp_path.glob("*/*"))))
    assert left == [1, 0]


def test_a_name_joins_processes_that_have_nothing_in_common(tmp_path: Path) -> None:
    """WATCHKEEPER_METRICS_INSTANCE adds up unrelated processes, also one after another; others stay apart."""
    program = (
        "import asyncio, sys\n"
        "from support.asgi import ask\n"
        "from support.workers import samples_of\n"
        "from watchkeeper import Watchkeeper\n"
        "async def main():\n"
        "    keeper = Watchkeeper('shop')\n"
        "    await keeper.start()\n"
        "    events = keeper.counter('events_total', 'Events.')\n"
        "    events.inc(5)\n"
        "    reply = await ask(keeper.wrap(None), '/metrics')\n"
        "    print(samples_of(reply.body.decode())['events_total', frozenset()], file=sys.stderr)\n"
        "    await keeper.close()\n"
        "asyncio.run(main())\n"
    )
    seen = []
    for name in ("north", "north", "south"):
        environ = {
            **os.environ,
            "WATCHKEEPER_METRICS_DIR": str(tmp_path),
            "WATCHKEEPER_METRICS_INSTANCE": name,
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        seen.append(float(done.stderr))
    assert seen == [5.0, 10.0, 5.0]

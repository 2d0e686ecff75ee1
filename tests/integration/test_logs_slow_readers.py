"""Slow, stuck and recovered readers: the loop keeps running, and drops are reported."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.lines import parse_lines

START = """
import asyncio, json, os, signal, sys, threading, time
from datetime import timedelta
from watchkeeper.logs._logging import Logging
from watchkeeper.logs.output._sink import Sink
logs = Logging(service="shop", env="test")
logs.install()
"""
# As on an older kernel: the sink writes in other ways.
OLD_KERNEL = "del os.RWF_NOWAIT"
NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
MEBIBYTE = 1 << 20
LIMIT = 8 * MEBIBYTE

UNREAD = """
drops = []
logs.sink.on_drop = lambda *drop: drops.append(drop)
written = [0, 0]
longest = 0.0

def write(who):
    logs.sink.write(b'{"who":%d,"n":%d,"pad":"%s"}\\n' % (who, written[who], b"x" * 900))
    written[who] += 1

async def watch():
    global longest
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - before)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def write_in_thread():
    for number in range(5_000):
        write(1)
        time.sleep(0.0001)

async def main():
    before = resident()
    watching = asyncio.create_task(watch())
    thread = asyncio.create_task(asyncio.to_thread(write_in_thread))
    for turn in range(400):
        for _ in range(100):
            write(0)
        if turn == 20:
            logs.event("info", who=2, n=0, **{f"k{i}": "y" * 100 for i in range(200)})
        await asyncio.sleep(0)
    await thread
    stats = {"written": written, "dropped": sum(count for count, _ in drops), "longest": longest,
             "grown": resident() - before, "reasons": sorted({reason for _, reason in drops})}
    print(json.dumps(stats), file=sys.stderr, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    while logs.sink.is_behind:
        await asyncio.sleep(0.01)
    logs.event("info", msg="last")
    watching.cancel()
    print(longest, file=sys.stderr, flush=True)

asyncio.run(main())
"""


class Output:
    """A standard output for a process, with a reader that may be slow."""

    def __init__(self, kind: str) -> None:
        if kind == "socket":
            ours, theirs = socket.socketpair()
            self._ends = [ours.detach(), theirs.detach()]
        elif kind == "terminal":
            self._ends = list(pty.openpty())
            tty.setraw(self._ends[1])
        else:
            self._ends = list(os.pipe())
        self.reader, self.writer = self._ends
        self._flags = fcntl.fcntl(self.writer, fcntl.F_GETFL)

    def start(self, body: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Run a program that writes here."""
        if NOBODY in body:
            # Coverage cannot save its data as another user, and would write a line about that at exit.
            options["env"] = {
                name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
            }
        return subprocess.Popen(
            [sys.executable, "-c", START + textwrap.dedent(body), *arguments],
            stdout=self.writer,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def close_writer(self) -> None:
        """Close our writing end; the processes have not changed its flags."""
        assert fcntl.fcntl(self.writer, fcntl.F_GETFL) == self._flags
        os.close(self._ends.pop())

    def read(self, *, pause: float = 0.0, size: int = 65_536) -> bytes:
        """Read until all writers are gone, with a pause after each piece."""
        out = bytearray()
        with contextlib.suppress(OSError):  # a terminal without a writer answers EIO
            while piece := os.read(self.reader, size):
                out += piece
                time.sleep(pause)
        return bytes(out)

    def close(self) -> None:
        for end in self._ends:
            os.close(end)


@pytest.fixture
def output(request: pytest.FixtureRequest) -> Iterator[Output]:
    """Return an output of the requested kind; default a pipe."""
    made = Output(getattr(request, "param", "pipe"))
    yield made
    made.close()


WAYS = [
    pytest.param("pipe", "", id="pipe"),
    pytest.param("pipe", OLD_KERNEL, id="pipe-old-kernel"),
    pytest.param("pipe", NOBODY, id="foreign-pipe", marks=only_root),
    pytest.param("pipe", f"{OLD_KERNEL}; {NOBODY}", id="foreign-pipe-old-kernel", marks=only_root),
    pytest.param("socket", "", id="socket"),
    pytest.param("socket", OLD_KERNEL, id="socket-old-kernel"),
    pytest.param("terminal", "", id="terminal"),
]


@pytest.mark.parametrize(("output", "change"), WAYS, indirect=["output"])
def test_loop_keeps_running_while_no_one_reads(output: Output, change: str) -> None:
    """40 MB into an output of 64 KiB: no turn waits, memory is bounded, drops are counted and reported."""
    process = output.start(change + UNREAD)
    assert process.stderr is not None
    stats = json.loads(process.stderr.readline())
    assert stats["longest"] < 0.5
    assert stats["grown"] < 2 * LIMIT
    assert stats["reasons"] == ["overflow"]
    out: list[bytes] = []
    # Closing the last writing end of a terminal discards what has not been read.
    terminal = os.isatty(output.writer)
    if not terminal:
        output.close_writer()
    reader = threading.Thread(target=lambda: out.append(output.read()))
    reader.start()
    _, rest = process.communicate(b"go\n", timeout=60)
    if terminal:
        time.sleep(0.2)
        output.close_writer()
    reader.join(60)
    assert process.returncode == 0, rest
    assert float(rest) < 0.5
    lines = parse_lines(out[0])
    for who in (0, 1):
        numbers = [line["n"] for line in lines if line.get("who") == who]
        assert numbers == sorted(set(numbers))
    assert any(line.get("who") == 2 for line in lines)
    dropped = stats["dropped"]
    assert sum(line.get("who") in {0, 1} for line in lines) + dropped == sum(stats["written"])
    assert sum(len(json.dumps(line)) for line in lines) > LIMIT
    assert [line["dropped"] for line in lines if line.get("type") == "log"] == [dropped]
    assert lines[-1]["msg"] == "last"


ENDS = {
    "normal exit": "",
    "exit from the loop": "asyncio.run(last_words())",
    "exception in main": "raise ValueError('main')",
    "exception in a thread": "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("change", ["", OLD_KERNEL, pytest.param(f"{OLD_KERNEL}; {NOBODY}", marks=only_root)])
def test_slow_reader_gets_everything_at_exit(output: Output, change: str, end: str) -> None:
    """1 MB waits for a reader that is alive when the process ends, however it ends."""
    process = output.start(
        f"""
        {change}
        async def last_words():
            logs.event("info", n=1000)
            sys.exit(0)
        async def main():
            for number in range(1000):
                logs.event("info", n=number, pad="x" * 1000)
        asyncio.run(main())
        {ENDS[end]}
        """
    )
    output.close_writer()
    lines = parse_lines(output.read(pause=0.02))
    code = (process.communicate(timeout=60), process.returncode)[1]
    assert [line["n"] for line in lines[:1000]] == list(range(1000))
    assert code == (1 if end == "exception in main" else 0)
    if "exception" in end:
        assert lines[-1]["error"]["type"] in {"ValueError", "ZeroDivisionError"}
    assert len(lines) == (1000 if end == "normal exit" else 1001)


@pytest.mark.parametrize("change", ["", OLD_KERNEL, pytest.param(f"{OLD_KERNEL}; {NOBODY}", marks=only_root)])
def test_stuck_reader_does_not_hang_the_exit(output: Output, change: str) -> None:
    """The first flush waits for its time-out, then drops and counts; later neither it nor the exit waits."""
    process = output.start(
        f"""
        {change}
        drops = []
        logs.sink.on_drop = lambda *drop: drops.append(drop)
        logs.sink._flush_timeout_s = 1.0
        async def main():
            for number in range(500):
                logs.event("info", n=number, pad="x" * 1000)
        asyncio.run(main())
        times = []
        for _ in range(2):
            begun = time.monotonic()
            logs.flush()
            times.append(time.monotonic() - begun)
            logs.sink._flush_timeout_s = 100.0
            logs.event("info", msg="y" * 3900)  # more than the rest of a page in the pipe takes
        print(json.dumps({{"times": times, "drops": drops, "at": time.time()}}), file=sys.stderr)
        """
    )
    _, err = process.communicate(timeout=60)
    stats = json.loads(err)
    first, second = stats["times"]
    assert first >= 1
    assert second < 50
    assert {reason for _, reason in stats["drops"]} == {"blocked"}
    output.close_writer()
    arrived = output.read().count(b"\n")
    assert sum(count for count, _ in stats["drops"]) + arrived == 501


def test_default_time_out_bounds_an_exit(output: Output) -> None:
    """Two sinks that no one reads: the process ends after 5 seconds."""
    begun = time.monotonic()
    process = output.start(
        """
        other = Logging(service="other", env="test")
        for n in range(500):
            logs.event("info", n=n, pad="x" * 1000)
            other.event("info", n=n, pad="x" * 1000)
        """
    )
    process.communicate(timeout=60)
    assert time.monotonic() - begun >= 5
    assert process.returncode == 0


def test_fork_during_a_wait_repeats_nothing(output: Output) -> None:
    """While the parent's thread waits for the reader, its child starts afresh: each line is written once."""
    process = output.start(
        """
        for number in range(1000):
            logs.event("info", who="parent", n=number, pad="x" * 1000)
        child = os.fork()
        for number in range(300):
            logs.event("info", who="child" if child == 0 else "after", n=number, pad="x" * 1000)
        logs.flush()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        """
    )
    output.close_writer()
    time.sleep(0.5)
    lines = parse_lines(output.read(pause=0.005))
    assert process.communicate(timeout=60)[1] == b""
    for who, count in (("parent", 1000), ("after", 300), ("child", 300)):
        assert [line["n"] for line in lines if line["who"] == who] == list(range(count))


SERVED = """
import os, sys
from watchkeeper import Watchkeeper, serve

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for number in range(1000):
            keeper.log.info("going down", n=number, pad="x" * 1000)
        await send({"type": "lifespan.shutdown.complete"})

keeper = Watchkeeper("shop", database=False)
watched = keeper.wrap(app)
if __name__ == "__main__":
    sys.exit(serve(keeper, watched))
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        pytest.param(["shop.py"], 0, id="serve"),
        pytest.param(["-m", "uvicorn", "shop:watched", "--port", "0"], -signal.SIGTERM, id="uvicorn"),
    ],
)
def test_nothing_is_lost_on_sigterm(output: Output, tmp_path: Path, command: list[str], code: int) -> None:
    """1 MB at shutdown into a pipe with a slow reader, also under a server that dies of the signal."""
    (tmp_path / "shop.py").write_text(SERVED)
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**os.environ, "PORT": "0", "WATCHKEEPER_STATE_DIR": str(tmp_path)},
        stdout=output.writer,
        stderr=subprocess.PIPE,
    )
    output.close_writer()
    out = b""
    while b"http://" not in out:
        out += os.read(output.reader, 4096)
    process.send_signal(signal.SIGTERM)
    lines = parse_lines(out + output.read(pause=0.01))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, b"")
    assert [line["n"] for line in lines if "n" in line] == list(range(1000))
    assert "n" not in lines[-1]  # the server's own last line

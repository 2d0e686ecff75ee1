"""Lines of real processes: shared pipes, forks, exits, and a stdout that is not there."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.lines import parse_lines

START = """
import asyncio, logging, os, sys, threading, time
from datetime import timedelta
from watchkeeper.logs import Redactor
from watchkeeper.logs._logging import Logging
from watchkeeper.logs.output._sink import Sink
logs = Logging(service="shop", env="test")
logs.install()
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue  # the test closed it itself


def script(body: str) -> list[str]:
    """Return the command that runs this program."""
    return [sys.executable, "-c", START + textwrap.dedent(body)]


def run(body: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end."""
    return subprocess.run(script(body), check=False, timeout=60, **{"capture_output": True, **options})


def read_slowly(fd: int) -> bytes:
    """Read to the end, as a collector does that is always a little behind."""
    out = bytearray()
    while piece := os.read(fd, 50_000):
        out += piece
        time.sleep(0.002)
    return bytes(out)


@pytest.mark.parametrize("kernel", ["", "del os.RWF_NOWAIT"], ids=["new kernel", "old kernel"])
def test_processes_that_share_a_pipe_keep_lines_whole(pipe: tuple[int, int], kernel: str) -> None:
    """Short and long lines, in batches and alone, from three processes at once, with a slow reader."""
    reader, writer = pipe
    body = f"""
        {kernel}
        me = int(sys.argv[1])
        logs.sink._flush_timeout_s = 30.0
        async def main():
            for turn in range(60):
                for number in range(15):
                    size = 25_000 if number == 7 and turn % 3 == 0 else 20 + (number * 97) % 900
                    logs.event("info", me=me, n=turn * 15 + number, pad="x" * 100, **{{
                        f"k{{i}}": "y" * 100 for i in range(size // 100)}})
                await asyncio.sleep(0)
        asyncio.run(main())
        print(logs.sink.dropped, file=sys.stderr)
    """
    processes = [
        subprocess.Popen([*script(body), str(me)], stdout=writer, stderr=subprocess.PIPE) for me in range(3)
    ]
    os.close(writer)
    lines = parse_lines(read_slowly(reader))
    dropped = sum(int(process.communicate()[1]) for process in processes)
    for me in range(3):
        numbers = [line["n"] for line in lines if line.get("me") == me]
        assert numbers == sorted(set(numbers))
    assert sum("n" in line for line in lines) + dropped == 3 * 900
    assert dropped == 0
    assert max(len(str(line)) for line in lines) > 20_000


def test_long_line_waits_for_the_lock_of_another_process(pipe: tuple[int, int]) -> None:
    """It blocks no one meanwhile, and it does not wait forever."""
    reader, writer = pipe
    holder = subprocess.Popen(
        script(
            """
            import fcntl
            fcntl.lockf(1, fcntl.LOCK_EX)
            print("held", file=sys.stderr, flush=True)
            time.sleep(60)
            """
        ),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    assert holder.stderr is not None
    holder.stderr.readline()
    done = run(
        """
        begun = time.monotonic()
        sink = Sink(1)
        sink.write(b"x" * 9999 + b"\\n")
        print(time.monotonic() - begun, file=sys.stderr)
        sink.flush()
        print(time.monotonic() - begun, file=sys.stderr)
        """,
        capture_output=False,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    holder.kill()
    holder.communicate()
    written, flushed = map(float, done.stderr.split())
    assert written < 0.2 < flushed < 4
    assert os.read(reader, 20_000) == b"x" * 9999 + b"\n"


def test_forked_child_does_not_repeat_its_parents_lines() -> None:
    """It starts with nothing pending, also if a thread of the parent was writing, and can write."""
    done = run(
        """
        async def main():
            logs.event("info", msg="parent")
            child = os.fork()
            if child == 0:
                logs.sink._scheduled = None
                logs.event("info", msg="child")
                logs.flush()
                os._exit(0)
            os.waitpid(child, 0)
        logs.sink._lock.acquire()
        child = os.fork()
        if child == 0:
            logs.event("info", msg="first child")
            os._exit(0)
        os.waitpid(child, 0)
        logs.sink._lock.release()
        asyncio.run(main())
        """
    )
    assert [line["msg"] for line in parse_lines(done.stdout)] == ["first child", "child", "parent"]
    assert done.stderr == b""


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit(0)",
        "asyncio.run(main())",
        "threading.Thread(target=lambda: asyncio.run(main())).start()",
        "asyncio.new_event_loop().run_until_complete(main())",
    ],
)
def test_nothing_is_lost_at_a_normal_exit(end: str) -> None:
    """Whatever the loop was doing, the last line is written."""
    done = run(
        f"""
        async def main():
            logs.event("info", msg="in the loop")
        logs.event("info", msg="first")
        {end}
        """
    )
    assert parse_lines(done.stdout)[0]["msg"] == "first"
    assert ("in the loop" in done.stdout.decode()) == ("main" in end)
    assert done.returncode == 0


def test_uncaught_exception_ends_the_process_with_one_line() -> None:
    """No traceback on either stream; the exit code is 1."""
    done = run(
        """
        def sell():
            raise ValueError("token=abc123")
        sell()
        """
    )
    (line,) = parse_lines(done.stdout)
    shown = (line["level"], line["error"]["type"], line["error"]["message"])
    assert shown == ("fatal", "ValueError", "token=***")
    assert (done.returncode, done.stderr) == (1, b"")


def test_process_without_stdout_keeps_running() -> None:
    """What it opens instead under that number gets no line."""
    done = subprocess.run(
        [
            "/bin/sh",
            "-c",
            'exec "$@" >&-',
            "sh",
            *script(
                """
                fd = os.open("/dev/null", os.O_RDWR)
                left, right = __import__("socket").socketpair()
                for _ in range(3):
                    logs.event("info", msg="lost")
                right.setblocking(False)
                try:
                    leaked = right.recv(100)
                except BlockingIOError:
                    leaked = b""
                print(logs.sink.dropped, fd, leaked, file=sys.stderr)
                """
            ),
        ],
        check=False,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert done.stderr.decode().split() == ["3", "1", "b''"]
    assert done.returncode == 0


def test_closed_reader_does_not_end_the_process(pipe: tuple[int, int]) -> None:
    """The lines are dropped and counted; no signal, no exception."""
    reader, writer = pipe
    os.close(reader)
    done = run(
        """
        drops = []
        logs.sink.on_drop = lambda *drop: drops.append(drop)
        for _ in range(3):
            logs.event("info", msg="lost")
        print(drops, file=sys.stderr)
        """,
        capture_output=False,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    assert done.stderr.strip() == b"[(1, 'closed'), (1, 'closed'), (1, 'closed')]"
    assert done.returncode == 0


def test_full_disk_does_not_end_the_process() -> None:
    """/dev/full as stdout: lines are counted as dropped."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - no path, a device
        done = run(
            """
            logs.event("info", msg="lost")
            print(logs.sink.dropped, file=sys.stderr)
            """,
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert (done.returncode, done.stderr.strip()) == (0, b"1")


def test_import_does_not_load_structlog() -> None:
    """structlog, and the rich that it imports, are loaded on first use."""
    code = "import sys, watchkeeper.logs; print(sorted({'structlog', 'rich', 'pygments'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    assert done.stdout.strip() == b"[]"


def test_access_loggers_have_no_handlers() -> None:
    """Without them uvicorn does not build a record."""
    done = run(
        """
        for name in ("uvicorn.access", "granian.access"):
            print(logging.getLogger(name).hasHandlers(), file=sys.stderr)
            logging.getLogger(name).warning("not even as a last resort")
        """
    )
    assert done.stderr.split() == [b"False", b"False"]
    assert done.stdout == b""

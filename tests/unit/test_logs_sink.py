import asyncio
import errno
import fcntl
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from support.lines import LineFile
from support.metrics import run_together
from watchkeeper.logs._logging import Logging
from watchkeeper.logs.output._sink import DROP_REASONS, Sink

SHORT = timedelta(milliseconds=30)
TIMEOUT = timedelta(milliseconds=200)


class Pipe:
    """A pipe."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._open = {self.reader, self.writer}

    def read(self) -> bytes:
        """Return everything in the pipe."""
        out = b""
        while select.select([self.reader], [], [], 0)[0]:
            piece = os.read(self.reader, 1 << 20)
            if not piece:
                break
            out += piece
        return out

    def fill(self) -> int:
        """Fill the pipe; return how many bytes that took."""
        os.set_blocking(self.writer, False)
        filled = 0
        for size in (4096, 1):
            try:
                while True:
                    filled += os.write(self.writer, b"." * size)
            except BlockingIOError:
                pass
        os.set_blocking(self.writer, True)
        return filled

    def close(self, *ends: int) -> None:
        """Close these ends; default: all that are open."""
        for end in ends or tuple(self._open):
            if end in self._open:
                os.close(end)
                self._open.discard(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Return a pipe that is closed after the test."""
    made = Pipe()
    yield made
    made.close()


def replace_write(monkeypatch: pytest.MonkeyPatch, write: Callable[[int, bytes], int]) -> None:
    """Replace the system calls that write to a descriptor."""
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "pwritev", lambda fd, data, _offset, _flags: write(fd, b"".join(data)))


def line(number: int, size: int = 0) -> bytes:
    """Return a numbered line, padded to `size`."""
    start = b"%d " % number
    return start + b"x" * (size - len(start) - 1) + b"\n"


async def test_lines_are_written_at_the_end_of_the_turn_within_a_loop(pipe: Pipe) -> None:
    """All lines of a turn together, and none later."""
    sink = Sink(pipe.writer)
    sink.write(b"one\n")
    sink.write(b"two\n")
    assert pipe.read() == b""
    await asyncio.sleep(0)
    assert pipe.read() == b"one\ntwo\n"
    sink.write(b"three\n")
    await asyncio.sleep(0)
    assert pipe.read() == b"three\n"


async def test_deferred_items_are_bounded(pipe: Pipe) -> None:
    """They have no size yet, so a number of them is rendered before the turn ends."""
    sink = Sink(pipe.writer)
    batches: list[int] = []

    def render(items: list[int]) -> bytes:
        batches.append(len(items))
        return b"".join(b"%d\n" % one for one in items)

    sink.render_deferred = render
    for number in range(2500):
        sink.defer(number)
        assert len(sink.deferred) < 1024
    assert batches == [1024, 1024]
    await asyncio.sleep(0)
    assert batches == [1024, 1024, 452]
    assert pipe.read() == b"".join(b"%d\n" % number for number in range(2500))


async def test_flush_within_a_loop_does_not_wait(pipe: Pipe) -> None:
    """What the reader has not taken stays pending; nothing is dropped."""
    filled = pipe.fill()
    sink = Sink(pipe.writer, flush_timeout=timedelta(seconds=100))
    sink.write(b"one\n")
    sink.flush()
    assert (sink.is_behind, sink.dropped) == (True, 0)
    out = pipe.read()
    await asyncio.to_thread(sink.flush)
    assert (out + pipe.read())[filled:] == b"one\n"


def test_lines_of_a_stopped_loop_are_not_lost(pipe: Pipe) -> None:
    """The next write writes them first."""
    sink = Sink(pipe.writer)
    loop = asyncio.new_event_loop()

    def last() -> None:
        sink.write(b"one\n")
        loop.stop()

    loop.call_soon(last)
    loop.run_forever()
    loop.close()
    sink.write(b"two\n")
    assert pipe.read() == b"one\ntwo\n"
    other = asyncio.new_event_loop()
    other.call_soon(sink.write, b"three\n")
    other.call_soon(other.stop)
    other.run_forever()
    other.close()
    sink.flush()
    assert pipe.read() == b"three\n"


def test_batch_is_written_in_chunks_of_whole_lines(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """No write is longer than PIPE_BUF or ends within a line: the kernel does not interleave such writes."""
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    written: list[bytes] = []
    write = os.write

    def note(fd: int, data: bytes) -> int:
        written.append(data)
        return write(fd, data)

    replace_write(monkeypatch, note)

    async def turn() -> None:
        sink = Sink(pipe.writer)
        for number in range(500):
            sink.write(line(number, 20 + number % 700))
        await asyncio.sleep(0)

    asyncio.run(turn())
    assert all(len(piece) <= select.PIPE_BUF and piece.endswith(b"\n") for piece in written)
    assert 0 < len(written) < 100
    assert pipe.read() == b"".join(line(number, 20 + number % 700) for number in range(500))


async def test_line_longer_than_a_chunk_stays_whole(pipe: Pipe) -> None:
    """It is a chunk of its own; one without a newline does no harm either."""
    sink = Sink(pipe.writer)
    lines = [line(1, 50), line(2, 30_000), line(3, 4096), line(4, 4097), line(5, 50)]
    for each in lines:
        sink.write(each)
    sink.write(b"y" * 5000)
    sink.flush()
    assert pipe.read() == b"".join(lines) + b"y" * 5000


def test_long_line_widens_the_pipe(pipe: Pipe) -> None:
    """With room for all of it, other processes' lines cannot get in between."""
    sink = Sink(pipe.writer)
    for number in range(12):
        sink.write(line(number, 30_000))
    assert sink.dropped == 0
    assert fcntl.fcntl(pipe.writer, fcntl.F_GETPIPE_SZ) >= 1 << 20
    assert pipe.read() == b"".join(line(number, 30_000) for number in range(12))


def test_long_line_waits_for_the_reader_and_is_then_dropped(pipe: Pipe) -> None:
    """If the pipe cannot grow, no part of the line is written."""
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    pipe.fill()
    drops: list[tuple[int, str]] = []
    sink = Sink(pipe.writer, on_drop=lambda *drop: drops.append(drop), flush_timeout=SHORT)
    sink.write(line(1, 10_000))
    assert drops == []
    sink.flush()
    assert drops == [(1, "blocked")]
    assert set(pipe.read()) == set(b".")
    sink.write(line(2, 10_000))
    assert pipe.read() == line(2, 10_000)


def test_threads_do_not_mix_their_lines_and_keep_their_order(tmp_path: Path) -> None:
    """Eight threads and a loop write at once: every line is whole, and each writer's are in order."""
    file = LineFile(tmp_path / "lines")
    logs = Logging(service="shop", env="test", sink=file.sink)

    def write(writer: int) -> None:
        for number in range(300):
            logs.event("info", writer=writer, number=number)

    async def in_loop() -> None:
        for number in range(300):
            logs.event("info", writer=99, number=number)
            if number % 7 == 0:
                await asyncio.sleep(0)

    run_together(*(partial(write, writer) for writer in range(8)), lambda: asyncio.run(in_loop()))
    seen: dict[int, list[int]] = {}
    for each in file.read():
        seen.setdefault(each["writer"], []).append(each["number"])
    file.close()
    assert seen == {writer: list(range(300)) for writer in (*range(8), 99)}


def test_loops_in_several_threads_share_a_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their turns end at the same time, and nothing is lost or raised."""
    write_at_once = os.write

    def slowly(fd: int, data: bytes) -> int:
        time.sleep(0.001)
        return write_at_once(fd, data)

    replace_write(monkeypatch, slowly)
    file = LineFile(tmp_path / "lines")
    logs = Logging(service="shop", env="test", sink=file.sink)
    reported: list[dict[str, object]] = []

    async def write(writer: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reported.append(report))
        for number in range(50):
            logs.event("info", writer=writer, number=number)
            await asyncio.sleep(0)

    run_together(*(lambda n=n: asyncio.run(write(n)) for n in range(4)))
    assert reported == []
    assert len(file.read()) == 200
    file.close()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (errno.EPIPE, "closed"),
        (errno.EBADF, "closed"),
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "full"),
        (errno.EIO, "error"),
    ],
)
def test_failed_write_is_counted_by_its_reason(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, failure: int, reason: str
) -> None:
    """Nothing is raised; the lines of the chunk are counted; the next write is tried again."""

    def fail(_fd: int, _data: bytes) -> int:
        raise OSError(failure, os.strerror(failure))

    drops: list[tuple[int, str]] = []
    sink = Sink(pipe.writer, on_drop=lambda *drop: drops.append(drop))
    with monkeypatch.context() as patched:
        replace_write(patched, fail)
        sink.write(b"one\n")
    sink.write(b"two\n")
    assert drops == [(1, reason)]
    assert reason in DROP_REASONS
    assert sink.dropped == 1
    assert pipe.read() == b"two\n"


def test_process_without_stdout_writes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptor 1 was closed when Python started, so by now it may be a socket."""
    monkeypatch.setattr(sys, "__stdout__", None)
    sink = Sink()
    sink.write(b"one\n")
    assert sink.dropped == 1


@pytest.mark.parametrize("blocking", [True, False])
def test_stuck_reader_costs_the_time_out_once(pipe: Pipe, *, blocking: bool) -> None:
    """No write waits. The first flush waits, then drops and counts; the next neither waits nor spins."""
    filled = pipe.fill()
    os.set_blocking(pipe.writer, blocking)
    drops: list[tuple[int, str]] = []
    sink = Sink(pipe.writer, on_drop=lambda *drop: drops.append(drop), flush_timeout=TIMEOUT)
    before, cpu = time.monotonic(), time.process_time()
    for _ in range(20):
        sink.write(b"one\n")
    assert drops == []
    sink.flush()
    assert time.monotonic() - before >= TIMEOUT.total_seconds()
    assert drops == [(20, "blocked")]
    sink._flush_timeout_s = 100.0
    sink.write(b"more\n")
    sink.flush()
    assert time.monotonic() - before < 50
    assert time.process_time() - cpu < 1
    assert drops == [(20, "blocked"), (1, "blocked")]
    assert os.get_blocking(pipe.writer) == blocking
    assert len(pipe.read()) == filled
    sink.write(b"again\n")
    assert pipe.read() == b"again\n"


def test_slow_reader_loses_nothing(pipe: Pipe) -> None:
    """A flush waits for it within the time-out."""
    filled = pipe.fill()
    os.set_blocking(pipe.writer, False)
    out: list[bytes] = []
    reader = threading.Timer(0.05, lambda: out.append(pipe.read()))
    reader.start()
    sink = Sink(pipe.writer, flush_timeout=timedelta(seconds=10))
    sink.write(b"one\n")
    sink.flush()
    reader.join()
    out.append(pipe.read())
    assert b"".join(out)[filled:] == b"one\n"
    assert sink.dropped == 0


def test_partial_write_is_completed() -> None:
    """A socket takes a part; the rest follows as soon as there is room."""
    left, right = socket.socketpair()
    left.setblocking(False)
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    out: list[bytes] = []

    def read() -> None:
        while data := right.recv(1000):
            out.append(data)

    reader = threading.Thread(target=read)
    sink = Sink(left.fileno(), flush_timeout=timedelta(seconds=10))
    reader.start()
    for number in range(20):
        sink.write(line(number, 30_000))
    sink.flush()
    left.close()
    reader.join()
    right.close()
    assert sink.dropped == 0
    assert b"".join(out) == b"".join(line(number, 30_000) for number in range(20))


def test_cut_line_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    """After a disk has filled up within a line, the next one starts on a line of its own."""
    write = os.write
    plan: list[int | OSError] = [4, OSError(errno.ENOSPC, "full"), OSError(errno.ENOSPC, "full")]

    def partly(fd: int, data: bytes) -> int:
        step = plan.pop(0) if plan else len(data)
        if isinstance(step, OSError):
            raise step
        return write(fd, data[:step])

    replace_write(monkeypatch, partly)
    sink = Sink(pipe.writer)
    for text in (b"first\n", b"second\n", b"third\n", b"fourth\n"):
        sink.write(text)
    assert pipe.read() == b"firs\nthird\nfourth\n"
    assert sink.dropped == 2


def test_drops_are_reported_when_writing_works_again(pipe: Pipe) -> None:
    """One line says how many are missing, where they are missing."""
    sink = Sink(pipe.writer, flush_timeout=SHORT)
    logs = Logging(service="shop", env="test", sink=sink)
    pipe.fill()
    os.set_blocking(pipe.writer, False)
    for _ in range(3):
        logs.event("info", msg="lost")
    logs.flush()
    pipe.read()
    logs.event("info", msg="back")
    logs.event("info", msg="and on")
    out = pipe.read().decode().splitlines()
    assert [text.partition('"env":"test",')[2] for text in out] == [
        '"msg":"back"}',
        '"type":"log","msg":"Log lines were dropped","dropped":3}',
        '"msg":"and on"}',
    ]


def test_on_drop_may_raise_or_log(pipe: Pipe) -> None:
    """The sink neither raises nor waits for itself."""
    pipe.close(pipe.reader)
    sink = Sink(pipe.writer)

    def on_drop(_count: int, _reason: str) -> None:
        if sink.dropped < 3:
            sink.write(b"about the drop\n")
            sink.flush()
        raise RuntimeError("counter is broken")

    sink.on_drop = on_drop
    sink.write(b"one\n")
    assert sink.dropped == 3


def test_on_recover_may_raise(pipe: Pipe) -> None:
    """The line is written whether the callback raises or is missing."""

    def fail(_count: int) -> None:
        raise RuntimeError("no")

    for on_recover in (fail, None):
        sink = Sink(-1, on_recover=on_recover)
        sink.write(b"lost\n")
        sink._chunks._writer.fd = pipe.writer
        sink.write(b"one\n")
        assert pipe.read() == b"one\n"


def test_pending_lines_are_bounded(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread hangs in a write, others add lines up to a limit; the rest are counted."""
    begun, go = threading.Event(), threading.Event()
    write = os.write

    def hang(fd: int, data: bytes) -> int:
        begun.set()
        go.wait(60)
        return write(fd, data)

    replace_write(monkeypatch, hang)
    drops: list[tuple[int, str]] = []
    sink = Sink(pipe.writer, on_drop=lambda *drop: drops.append(drop))
    writer = threading.Thread(target=sink.write, args=(b"one\n",))
    writer.start()
    begun.wait(60)
    big = line(2, 1 << 20)
    for _ in range(20):
        sink.write(big)
    assert 0 < sum(count for count, _ in drops) < 20
    assert {reason for _, reason in drops} == {"overflow"}
    reading = threading.Thread(target=lambda: [os.read(pipe.reader, 1 << 20) for _ in range(3)], daemon=True)
    sink._pending.clear()
    sink._pending_bytes = 0
    reading.start()
    go.set()
    writer.join()
    pipe.close(pipe.writer)
    reading.join()


def test_flush_waits_for_a_thread_that_is_writing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """At exit the line that another thread is writing gets out first."""
    begun = threading.Event()
    write = os.write

    def slowly(fd: int, data: bytes) -> int:
        begun.set()
        time.sleep(0.05)
        return write(fd, data)

    replace_write(monkeypatch, slowly)
    sink = Sink(pipe.writer, flush_timeout=timedelta(seconds=10))
    writer = threading.Thread(target=sink.write, args=(b"one\n",))
    writer.start()
    begun.wait(60)
    sink.flush()
    assert pipe.read() == b"one\n"
    writer.join()

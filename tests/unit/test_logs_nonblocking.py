import errno
import fcntl
import gc
import itertools
import os
import pty
import select
import signal
import socket
import threading
import time
import tty
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from watchkeeper.logs.output._nonblocking import NonBlockingWriter
from watchkeeper.logs.output._sink import Sink

MOMENT = timedelta(milliseconds=20)
TIMEOUT = timedelta(seconds=10)


def _make_pipe() -> tuple[int, int]:
    return os.pipe()


def _make_socket() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _make_terminal() -> tuple[int, int]:
    reader, writer = pty.openpty()
    tty.setraw(writer)
    return reader, writer


def _keep_kernel(_: pytest.MonkeyPatch) -> None:
    pass


def _make_kernel_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "RWF_NOWAIT")


def _forbid_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    _make_kernel_old(monkeypatch)
    monkeypatch.setattr(os, "open", refuse)


def _forbid_nowait(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "pwritev", refuse)


@pytest.fixture
def ends() -> Iterator[Callable[[Callable[[], tuple[int, int]]], tuple[int, int]]]:
    """Return a function that makes a reading and a writing end; they are closed after the test."""
    made: list[int] = []

    def make(maker: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        made.extend(maker())
        return made[-2], made[-1]

    yield make
    for end in made:
        try:
            os.close(end)
        except OSError:
            continue


def fill(target: NonBlockingWriter) -> int:
    """Write until there is no room; return how many bytes that took."""
    filled = 0
    while True:
        try:
            filled += target.write_in_thread(b"." * 4096)
        except BlockingIOError:
            # A terminal may have room again.
            if not select.select([], [target.fd], [], 0.02)[1]:
                return filled


WAYS = [
    (maker, change)
    for maker in (_make_pipe, _make_socket, _make_terminal)
    for change in (_keep_kernel, _make_kernel_old, _forbid_nowait, _forbid_opening)
    if (maker, change) != (_make_terminal, _forbid_opening)  # a thread may hang in that one: tested below
]


@pytest.mark.parametrize(("maker", "change"), WAYS)
def test_no_way_of_writing_blocks_or_touches_the_flags(
    ends: Callable[..., tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    maker: Callable[[], tuple[int, int]],
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """Whatever the kernel allows: a write to a full output raises at once, and the flags stay."""
    reader, writer = ends(maker)
    change(monkeypatch)
    socket.setdefaulttimeout(5)
    flags = fcntl.fcntl(writer, fcntl.F_GETFL)
    target = NonBlockingWriter(writer)
    filled = fill(target)
    with pytest.raises(BlockingIOError, match="unavailable"):
        target.write(b"." * 4096)
    before = time.monotonic()
    target.wait(MOMENT)
    assert time.monotonic() - before >= MOMENT.total_seconds()
    assert fcntl.fcntl(writer, fcntl.F_GETFL) == flags
    socket.setdefaulttimeout(None)
    read = 0
    while select.select([reader], [], [], 0)[0]:
        read += len(os.read(reader, 1 << 20))
    assert read == filled > 4096
    target.wait(TIMEOUT)
    assert target.write_in_thread(b"on\n") == 3
    assert os.read(reader, 10) == b"on\n"


def test_thread_writes_where_nothing_else_works(
    ends: Callable[..., tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's own write is refused even with room, and the line arrives all the same."""
    reader, writer = ends(_make_pipe)
    _forbid_opening(monkeypatch)
    with pytest.raises(BlockingIOError, match="unavailable"):
        NonBlockingWriter(writer).write(b"one\n")
    sink = Sink(writer)
    sink.write(b"one\n")
    sink.write(b"two\n")
    sink.flush()
    assert os.read(reader, 10) == b"one\ntwo\n"


@pytest.mark.parametrize("change", [_keep_kernel, _make_kernel_old, _forbid_opening])
@pytest.mark.parametrize("maker", [_make_pipe, _make_socket])
def test_closed_reader_is_reported_in_every_way_of_writing(
    ends: Callable[..., tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    maker: Callable[[], tuple[int, int]],
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """Before the first line and later: dropped and counted as closed."""
    drops: list[tuple[int, str]] = []
    for lines_before in (0, 1):
        reader, writer = ends(maker)
        with monkeypatch.context() as patched:
            change(patched)
            sink = Sink(writer, on_drop=lambda *drop: drops.append(drop))
            for _ in range(lines_before):
                sink.write(b"before\n")
                sink.flush()
            os.close(reader)
            for _ in range(2):
                sink.write(b"lost\n")
                sink.flush()
    assert drops == [(1, "closed")] * 4


def test_reset_reopens_output(ends: Callable[..., tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor of our own does not outlive what it was opened for, nor its writer."""
    reader, writer = ends(_make_pipe)
    other_reader, other = ends(_make_pipe)
    _make_kernel_old(monkeypatch)
    target = NonBlockingWriter(writer)
    target.write(b"one\n")
    os.close(reader)
    os.dup2(other, writer)
    with pytest.raises(BrokenPipeError, match="Broken pipe"):
        target.write(b"lost\n")
    target.reset()
    assert target.write(b"two\n") == 4
    assert os.read(other_reader, 10) == b"two\n"
    os.close(other)
    os.close(writer)
    del target
    gc.collect()
    assert os.read(other_reader, 10) == b""


def test_file_is_appended_to(tmp_path: Path) -> None:
    """There is no descriptor of our own, so no position of our own."""
    path = tmp_path / "lines"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    target = NonBlockingWriter(fd)
    target.write(b"one\n")
    os.write(fd, b"two\n")
    target.write(b"three\n")
    os.close(fd)
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_flush_does_not_wait_for_a_thread_that_hangs_in_a_terminal(
    ends: Callable[..., tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's stopped terminal: after the time-out the lines are dropped and counted."""
    reader, writer = ends(_make_terminal)
    _forbid_opening(monkeypatch)
    drops: list[tuple[int, str]] = []
    sink = Sink(writer, on_drop=lambda *drop: drops.append(drop), flush_timeout=MOMENT)
    for number in range(1000):
        sink.write(b"%d %s\n" % (number, b"x" * 1000))
    sink.flush()
    assert {reason for _, reason in drops} == {"blocked"}
    out = b""
    while sink.is_behind:
        if select.select([reader], [], [], 0.01)[0]:
            out += os.read(reader, 1 << 20)
    while select.select([reader], [], [], 0.2)[0]:
        out += os.read(reader, 1 << 20)
    written = 1000 - sum(count for count, _ in drops)
    assert out == b"".join(b"%d %s\n" % (number, b"x" * 1000) for number in range(written))


def test_without_a_thread_lines_wait_for_the_next_flush(
    ends: Callable[..., tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many threads, or an interpreter that is shutting down: nothing is raised or lost."""
    reader, writer = ends(_make_pipe)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    sink = Sink(writer, flush_timeout=TIMEOUT)
    filled = fill(NonBlockingWriter(writer))
    sink.write(b"one\n")
    sink.write(b"two\n")
    assert os.read(reader, 1 << 20) == b"." * filled
    sink.flush()
    assert os.read(reader, 10) == b"one\ntwo\n"


def test_writer_thread_ends_with_its_sink(ends: Callable[..., tuple[int, int]]) -> None:
    """A sink without references is freed, and its thread stops."""
    reader, writer = ends(_make_pipe)
    before = set(threading.enumerate())
    sink = Sink(writer, flush_timeout=TIMEOUT)
    fill(NonBlockingWriter(writer))
    sink.write(b"one\n")
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    os.read(reader, 1 << 20)
    sink.flush()
    gone = weakref.ref(sink)
    del sink
    gc.collect()
    thread.join(60)
    assert gone() is None
    assert not thread.is_alive()


def test_callbacks_in_the_thread_may_log_and_flush(ends: Callable[..., tuple[int, int]]) -> None:
    """They do not wait for the thread that they run in."""
    reader, writer = ends(_make_pipe)
    sink = Sink(writer, flush_timeout=TIMEOUT)

    def report(dropped: int) -> None:
        sink.write(b"dropped %d\n" % dropped)
        sink.flush()

    sink.on_recover = report
    filled = fill(NonBlockingWriter(writer))
    for _ in range(2):
        sink.write(b"x" * (9 << 20) + b"\n")
    assert os.read(reader, 1 << 20) == b"." * filled
    out = b""
    while not out.endswith(b"dropped 1\n"):
        out += os.read(reader, 1 << 20)
    sink.flush()
    assert out.count(b"\n") == 2


def test_signal_handler_may_log_and_flush_at_any_time(ends: Callable[..., tuple[int, int]]) -> None:
    """While this thread writes, hands over or flushes: no deadlock, and every line is written once."""
    reader, writer = ends(_make_pipe)
    sink = Sink(writer, flush_timeout=timedelta(minutes=2))  # beside the handler the reader is slow
    numbers = itertools.count()
    flushing = False

    def handle(*_: object) -> None:
        nonlocal flushing
        number = next(numbers)
        sink.write(b"handler %d\n" % number)
        if number % 50 == 0 and not flushing:
            flushing = True
            sink.flush()
            flushing = False

    out = bytearray()

    def read() -> None:
        while piece := os.read(reader, 65_536):
            out.extend(piece)

    thread = threading.Thread(target=read)
    thread.start()
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for number in range(20_000):
            sink.write(b"main %d %s\n" % (number, b"x" * 100))
        sink.flush()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    sink.flush()
    os.close(writer)
    thread.join()
    lines = bytes(out).splitlines()
    assert [int(line.split()[1]) for line in lines if line.startswith(b"main")] == list(range(20_000))
    handled = sorted(int(line.split()[1]) for line in lines if line.startswith(b"handler"))
    assert handled == list(range(next(numbers)))
    assert sink.dropped == 0
    assert len(handled) > 10

"""A small service behind real servers with several workers, and a client that counts its responses."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

APP: Final = """
import json, os
from prometheus_client import Counter
from watchkeeper import Watchkeeper

keeper = Watchkeeper("shop")
orders = keeper.counter("orders_total", "Orders.", ("kind",))
busy = keeper.gauge("busy", "Running workers.", multiprocess_mode="sum")
pids = keeper.gauge("worker_pid", "Pid of each worker.", multiprocess_mode="worker")
legacy = Counter("legacy_orders", "Orders, as an old library counts them.")

async def inner(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        busy.set(1)
        pids.set(os.getpid())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    orders.labels(kind=scope["path"][1:]).inc()
    legacy.inc()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

app = keeper.wrap(inner)
"""

WORKERS: Final = 4
# granian gives up when a respawned worker ends within 5.5 s: it takes that for a crash loop.
REST_S: Final = {"granian": 5.7}
BIN: Final = Path(sys.executable).parent
_PORT: Final = "PORT"
COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "uvicorn": ("uvicorn", "shop:app", "--workers", "4", "--port", _PORT, "--no-access-log"),
    "granian": (
        *("granian", "--interface", "asgi", "shop:app", "--host", "127.0.0.1", "--port", _PORT),
        *("--workers", "4", "--respawn-failed-workers", "--respawn-interval", "0.01"),
    ),
    "gunicorn": (
        *("gunicorn", "shop:app", "--worker-class", "uvicorn_worker.UvicornWorker"),
        *("--workers", "4", "--bind", f"127.0.0.1:{_PORT}"),
    ),
    "gunicorn --preload": (
        *("gunicorn", "shop:app", "--worker-class", "uvicorn_worker.UvicornWorker", "--preload"),
        *("--workers", "4", "--bind", f"127.0.0.1:{_PORT}"),
    ),
}


class Service:
    """A server with workers."""

    def __init__(self, folder: Path, shared: Path, server: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "shop.py").write_text(APP)
        self.shared = shared / f"watchkeeper-{os.geteuid()}"
        self.lines = folder / "lines"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program, *arguments = [one.replace(_PORT, str(self.port)) for one in COMMANDS[server]]
        with self.lines.open("ab") as output:
            self._process = subprocess.Popen(
                [BIN / program, *arguments],
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(folder),
                    "WATCHKEEPER_METRICS_DIR": str(shared),
                    "WATCHKEEPER_REQUEST_LINES": "off",
                },
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def workers(self) -> dict[int, int]:
        """Return the pids of the running workers by number, as the metrics show them."""
        return {
            int(dict(labels)["worker"]): int(value)
            for (name, labels), value in self.scrape().items()
            if name == "worker_pid"
        }

    def wait_until_whole(self) -> dict[int, int]:
        """Wait until all workers run, and return them."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError, http.client.HTTPException):
                found = self.workers()
                if len(found) == WORKERS and all(map(_runs, found.values())):
                    return found
            assert self._process.poll() is None, self.lines.read_text()
            time.sleep(0.05)
        raise AssertionError(f"the workers did not start: {self.lines.read_text()[-3000:]}")

    def get(self, path: str, accept: str = "text/plain") -> bytes:
        """Request a path on a new connection; OSError or HTTPException without a complete response."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as one:
            one.request("GET", path, headers={"accept": accept, "connection": "close"})
            answer = one.getresponse()
            assert answer.status == 200, answer.read()
            return answer.read()

    def scrape(self) -> Samples:
        """Scrape one of the workers."""
        return samples_of(self.get("/metrics").decode())

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of a name that have these labels."""
        return total(self.scrape(), name, **labels)

    def metric_lines(self) -> list[dict[str, str]]:
        """Return the log lines about metrics."""
        lines = [json.loads(line) for line in self.lines.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("type") == "metrics"]

    def files(self) -> dict[str, int]:
        """Return the files of all instances, with their bytes on disk."""
        return {
            str(path.relative_to(self.shared)): path.stat().st_blocks * 512
            for path in self.shared.rglob("*")
            if path.is_file()
        }

    def stop(self) -> None:
        """End the server and all of its workers."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # workers that it left behind are in its session


@contextlib.contextmanager
def serving_workers(folder: Path, shared: Path, server: str) -> Iterator[Service]:
    """Run a server with workers until the block ends."""
    service = Service(folder, shared, server)
    try:
        service.wait_until_whole()
        yield service
    finally:
        service.stop()


class Client:
    """Requests a path from several threads until it is stopped, and counts the responses."""

    def __init__(self, service: Service, path: str, threads: int = 4) -> None:
        self.answered = 0
        self.broken = 0
        self._service = service
        self._path = path
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._service.get(self._path)
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.broken += 1
                time.sleep(0.02)
            else:
                with self._lock:
                    self.answered += 1

    def stop(self) -> None:
        """Stop after the current requests."""
        self._ended.set()
        for thread in self._threads:
            thread.join()


def samples_of(text: str, *, openmetrics: bool = False) -> Samples:
    """Return the samples of an exposition as prometheus_client's parser of its format reads them."""
    parser: Any = openmetrics_parser if openmetrics else text_parser  # one of the two has no types
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of all samples of a name that have these labels."""
    return sum(
        value for (one, has), value in samples.items() if one == name and frozenset(labels.items()) <= has
    )


def counters(samples: Samples) -> Samples:
    """Return the samples that never go down: our counters and histograms, not those of one process."""
    return {
        key: value
        for key, value in samples.items()
        if key[0].endswith(("_total", "_bucket", "_count", "_sum")) and not dict(key[1]).get("worker")
    }


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

"""Real Prometheus and Alertmanager processes, the server they scrape and the receiver they notify.

The processes run the files of `infra/monitoring`. `variant` changes only addresses and times, so everything
else is what an operator gets.
"""

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from support.metrics import ScrapedRegistry
from support.tools import require_tool
from watchkeeper.metrics.exposition._exposition import prefers_openmetrics

MONITORING: Final = Path(__file__).parents[2] / "infra/monitoring"

_LISTENING: Final = re.compile(r'msg="Listening on" address=(127\.0\.0\.1:\d+)')


def run_tool(program: str, *arguments: str | Path, folder: Path, stdin: str = "") -> tuple[int, str]:
    """Run promtool or amtool in `folder`; return its exit code and output."""
    done = subprocess.run(
        [require_tool(program), *arguments],
        cwd=folder,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=110,
    )
    return done.returncode, done.stdout


def wait_until(true: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Return the first true value of `true`, called every 50 ms; an HTTP error counts as false."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if value := true():
                return value
        time.sleep(0.05)
    raise AssertionError(f"there was no {what} within {seconds} s")


@contextlib.contextmanager
def running(program: str, *arguments: str | Path, folder: Path) -> Iterator[httpx.Client]:
    """Run Prometheus or Alertmanager on a free loopback port; yields a client of its API."""
    log = folder / f"{program}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [require_tool(program), "--web.listen-address=127.0.0.1:0", *arguments],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def address() -> str | None:
        output_so_far = log.read_text(encoding="utf-8")
        assert process.poll() is None, f"{program} ended: {output_so_far}"
        found = _LISTENING.search(output_so_far)
        return found[1] if found else None

    try:
        base = f"http://{wait_until(address, f'listening {program}')}"
        with httpx.Client(base_url=base, timeout=60, trust_env=False) as client:
            wait_until(lambda: client.get("/-/ready").is_success, f"ready {program}")
            yield client
    finally:
        process.terminate()
        process.wait(60)


class Prometheus:
    """Queries to a running Prometheus."""

    def __init__(self, api: httpx.Client) -> None:
        self._api = api

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a response of its API."""
        answer = self._api.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the values of an instant query by their labels."""
        result = self.get("query", query=expression)["result"]
        return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in result}

    def rules(self) -> list[dict[str, Any]]:
        """Return all loaded rules, with their health."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        """Return the names of the firing alerts."""
        return {dict(labels)["alertname"] for labels in self.query('ALERTS{alertstate="firing"}')}

    def metric_names(self, job: str) -> set[str]:
        """Return the names of all series of a job."""
        return set(self.get("label/__name__/values", **{"match[]": f'{{job="{job}"}}'}))


@dataclass
class _HttpServer:
    """An HTTP server of the tests."""

    server: ThreadingHTTPServer

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        """Stop the server."""
        self.server.shutdown()
        self.server.server_close()


@dataclass
class MetricsServer(_HttpServer):
    """Serves a registry at `/metrics`, for requests with the token."""

    registry: ScrapedRegistry
    token: str


@dataclass
class Receiver(_HttpServer):
    """Receives what Alertmanager sends: path, Authorization header and message."""

    received: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def alerts(self, path: str, status: str = "firing") -> list[dict[str, Any]]:
        """Return the alerts that were sent to a path."""
        return [
            alert
            for at, _, message in list(self.received)
            if at == path
            for alert in message["alerts"]
            if alert["status"] == status
        ]


@contextlib.contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


class _QuietHandler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def answer(self, status: int, body: bytes = b"", content_type: str = "text/plain") -> None:
        """Send a whole response."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def exporting(registry: ScrapedRegistry, token: str, *, text_only: bool = False) -> Iterator[MetricsServer]:
    """Serve `registry` until the block ends."""

    class Handler(_QuietHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] != f"Bearer {token}" or self.path != "/metrics":
                self.answer(403)
                return
            openmetrics = not text_only and prefers_openmetrics(self.headers["Accept"])
            exposition = registry.scrape(openmetrics=openmetrics)
            self.answer(200, exposition.body, exposition.content_type)

    with _serving(Handler) as server:
        yield MetricsServer(server, registry, token)


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive messages of Alertmanager until the block ends."""
    received: list[tuple[str, str, dict[str, Any]]] = []

    class Handler(_QuietHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.path, self.headers["Authorization"], message))
            self.answer(200)

    with _serving(Handler) as server:
        yield Receiver(server, received)


def variant(
    folder: Path, *, target: str, token: str, alertmanager: str = "127.0.0.1:9", every: str = "1s"
) -> Path:
    """Write the shipped configuration with other addresses and intervals and no `for`; return its file."""
    shutil.copytree(MONITORING, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("secrets"))
    (folder / "secrets").mkdir()
    (folder / "secrets/metrics_token").write_text(token, encoding="utf-8")
    config = yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] |= {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rules = (folder / "alerts.yml").read_text(encoding="utf-8")
    shortened, count = re.subn(r"^( +(?:keep_firing_)?for): \w+$", r"\1: 0s", rules, flags=re.MULTILINE)
    assert count == rules.count("for: "), "a `for` is written in another way"
    (folder / "alerts.yml").write_text(shortened, encoding="utf-8")
    return folder / "prometheus.yml"


def alertmanager_variant(folder: Path, receiver: str, token: str) -> Path:
    """Write the shipped Alertmanager configuration with another receiver and no waiting; return its file."""
    (folder / "secrets").mkdir(parents=True)
    (folder / "secrets/webhook_token").write_text(token, encoding="utf-8")
    config = yaml.safe_load((MONITORING / "alertmanager.yml").read_text(encoding="utf-8"))
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    for one in config["receivers"]:
        one["webhook_configs"][0]["url"] = f"http://{receiver}/{one['name']}"
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "alertmanager.yml"


@contextlib.contextmanager
def running_prometheus(config: Path, *arguments: str) -> Iterator[Prometheus]:
    """Run Prometheus with this configuration until the block ends."""
    data = f"--storage.tsdb.path={config.parent / 'data'}"
    with running("prometheus", f"--config.file={config}", data, *arguments, folder=config.parent) as api:
        yield Prometheus(api)


@contextlib.contextmanager
def running_alertmanager(config: Path, arguments: Sequence[str] = ()) -> Iterator[httpx.Client]:
    """Run Alertmanager without a cluster with this configuration until the block ends."""
    with running(
        "alertmanager",
        f"--config.file={config}",
        f"--storage.path={config.parent / 'data'}",
        "--cluster.listen-address=",
        *arguments,
        folder=config.parent,
    ) as api:
        yield api

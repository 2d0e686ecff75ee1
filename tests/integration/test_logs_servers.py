"""Lines of real servers: all of them are JSON, and each is written once."""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.lines import parse_lines

APP = """
import asyncio, logging, warnings
import structlog
from watchkeeper.logs._logging import Logging

logs = Logging(service="shop", env="test")
logs.install()
log = structlog.get_logger()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        logs.install()
        log.info("up")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        log.info("down")
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/unhandled":
        raise RuntimeError("not caught")
    if scope["path"] == "/handled":
        try:
            raise RuntimeError("the service logged this")
        except RuntimeError:
            logging.getLogger("shop").exception("failed")
            raise
    logging.getLogger("lib").info("hello from %s", scope["path"])
    log.info("hello", path=scope["path"])
    warnings.warn("old thing")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0.01)
    del task
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})

async def fail():
    raise ValueError("in a task")
"""

LOG_CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"lines": {"()": "watchkeeper.logs.line_handler", "service": "shop", "env": "test"}},
    "loggers": {
        name: {"handlers": ["lines"], "level": "INFO", "propagate": False} for name in ("uvicorn", "_granian")
    },
}
BIN = Path(sys.executable).parent
SERVERS = {
    "uvicorn": ["uvicorn", "shop:app"],
    "uvicorn with workers": ["uvicorn", "shop:app", "--workers", "2", "--log-config", "lines.json"],
    "granian": [
        *("granian", "--interface", "asgi", "shop:app", "--host", "127.0.0.1"),
        *("--access-log", "--log-config", "lines.json"),
    ],
}


class Server:
    """A server, started in a folder with an app."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        (folder / "shop.py").write_text(APP)
        (folder / "lines.json").write_text(json.dumps(LOG_CONFIG))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program, *arguments = command
        self.process = subprocess.Popen(
            [BIN / program, *arguments, "--port", str(self.port)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def get(self, path: str) -> int:
        """Ask for a path as soon as the server is up; return the status, or 0 for a closed connection."""
        for _ in range(200):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request("GET", path)
                return connection.getresponse().status
            except ConnectionRefusedError:
                time.sleep(0.1)
            except http.client.HTTPException:
                return 0
            finally:
                connection.close()
        raise AssertionError("the server did not start")

    def stop(self) -> tuple[list[dict[str, Any]], bytes]:
        """Stop the server; return its lines and its stderr."""
        self.process.terminate()
        out, err = self.process.communicate(timeout=30)
        return parse_lines(out), err


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Return the server with this name."""
    started = Server(tmp_path, SERVERS[request.param])
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_every_line_of_a_server_is_json_and_written_once(server: Server) -> None:
    """The service's own lines, its libraries', the server's, warnings and exceptions; no access log."""
    assert server.get("/one") == 200
    for path in ("/unhandled", "/handled"):
        assert server.get(path) in {0, 500}
    lines, err = server.stop()
    assert err == b""
    assert {line["service"] for line in lines} == {"shop"}
    messages = Counter(line["msg"] for line in lines)
    assert messages["hello from /one"] == messages["hello"] == 1
    assert sum("UserWarning: old thing" in line["msg"] for line in lines) == 1
    raw = [json.dumps(line) for line in lines]
    for text in ("not caught", "the service logged this", "in a task"):
        assert sum(text in line for line in raw) == 1
    assert messages["failed"] == 1
    assert not any("GET /one" in line or "200 OK" in line for line in raw)
    assert any("uvicorn" in line or "granian" in line for line in raw)

"""The README's examples work as shown."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg

from support.backend import Program
from support.postgres import DatabaseUrls

README = (Path(__file__).parents[2] / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _uvicorn(folder: Path, **environ: str) -> Iterator[str]:
    """Run the README's `shop:app` with uvicorn."""
    port = _free_port()
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "shop:app", "--port", str(port)],
            cwd=folder,
            env={**os.environ, "WATCHKEEPER_STATE_DIR": str(folder), **environ},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _ask(url: str) -> httpx.Response:
    end = time.monotonic() + 30
    while True:
        try:
            return httpx.get(url)
        except httpx.ConnectError:
            assert time.monotonic() < end, f"{url} never answered"
            time.sleep(0.05)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out").read_text().splitlines()]


def test_one_line_monitors_a_fastapi_app(tmp_path: Path) -> None:
    """The README's first example runs under plain uvicorn, with health, metrics and lines."""
    first, _ = _blocks("python")
    (tmp_path / "shop.py").write_text(
        first + '\n@api.get("/things/{id}")\ndef thing(id: int):\n    return id\n'
    )
    with _uvicorn(tmp_path) as url:
        assert _ask(f"{url}/health").json() == {"status": "ok"}
        answer = httpx.get(f"{url}/things/7", headers={"X-Request-ID": "mine"})
        assert answer.headers["X-Request-ID"] == "mine"
        assert 'route="/things/{id}"' in httpx.get(f"{url}/metrics").text
    lines = _lines(tmp_path)
    # The server's first and last messages are lines too, although a signal ends it.
    assert lines[0]["msg"].startswith("Started server process")
    assert lines[-1]["msg"].startswith("Finished server process")
    line = next(line for line in lines if line.get("type") == "request")
    assert line["route"] == "/things/{id}"
    assert (line["service"], line["requestId"], line["statusCode"]) == ("shop", "mine", 200)


def test_policy_is_scheduled_under_any_server(tmp_path: Path, database_urls: DatabaseUrls) -> None:
    """The README's second example starts with its database and logs the next run."""
    first, second = _blocks("python")
    (tmp_path / "shop.py").write_text(first + second)
    with psycopg.connect(database_urls.owner_url, autocommit=True) as conn:
        conn.execute("CREATE TABLE events (id int, received_at timestamptz)")
    environ = {"DATABASE_URL": database_urls.url, "DATABASE_OWNER_URL": database_urls.owner_url}
    with _uvicorn(tmp_path, **environ) as url:
        assert _ask(f"{url}/health").json() == {"status": "ok", "db": "connected"}
        end = time.monotonic() + 60
        while "scheduled" not in {line.get("status") for line in _lines(tmp_path)}:
            assert time.monotonic() < end, _lines(tmp_path)
            time.sleep(0.05)
        assert 'retention_policy_since_timestamp_seconds{table="events"}' in httpx.get(f"{url}/metrics").text


def test_curl_output_is_true(program: Program) -> None:
    """Each URL of the README answers with the body that is shown below it."""
    shown = re.findall(r"^\$ curl -s '?127\.0\.0\.1:3001(\S+?)'?(?: .*)?\n(.+)$", README, re.MULTILINE)
    assert [path for path, _ in shown] == [
        "/health",
        "/health/detailed",
        "/metrics",
        "/api/listings/search?type=house",
    ]
    for path, body in shown:
        assert body in program.get(path).text
    request_id = program.get(shown[-1][0]).headers["X-Request-ID"]
    (example,) = _blocks("json")
    assert list(json.loads(example)) == list(program.line_of(request_id))


def test_commands_exist() -> None:
    """dev.py has each command that the README names."""
    script = (Path(__file__).parents[2] / "dev.py").read_text()
    named = set(re.findall(r"^\$ python3 dev\.py (\w+)", README, re.MULTILINE))
    assert named == {"serve", "test", "traffic", "keep"}
    assert {command for command in named if f'"{command}"' not in script} == set()

"""A fresh copy of the checkout, the real lock file, one command, and a backend that answers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from support.checkout import BASE_PYTHON, NOBODY, ROOT, python_for_others

NOT_IN_A_CLONE = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", ".coverage*"
)
# Variables that a newcomer has not set.
SETTINGS = (
    "APP_ENV",
    "DATABASE_URL",
    "HOST",
    "LOG_LEVEL",
    "METRICS_TOKEN",
    "SERVICE_TOKEN",
    "WEBHOOK_SECRETS",
)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with the checkout in it; if the tests run as root, it belongs to an ordinary user."""
    folder = Path(tempfile.mkdtemp(prefix="new-"))
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_IN_A_CLONE)
    if os.geteuid() == 0:
        subprocess.run(["/bin/chown", "-R", f"{NOBODY}:{NOBODY}", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


def start(home: Path, port: int, *arguments: str) -> subprocess.Popen[str]:
    """Start dev.py as an ordinary user, as a newcomer would."""
    root = os.geteuid() == 0
    environ = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    environ |= {"HOME": str(home), "PORT": str(port), "WATCHKEEPER_STATE_DIR": str(home / "state")}
    return subprocess.Popen(
        [python_for_others() if root else BASE_PYTHON, "dev.py", *arguments],
        cwd=home / "checkout",
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        user=NOBODY if root else None,
        group=NOBODY if root else None,
        extra_groups=() if root else None,
    )


@pytest.fixture
def serving(home: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`dev.py serve`, just started, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with start(home, port, "serve") as process:
        yield process, port
        process.kill()


@pytest.mark.timeout(400)
def test_one_command_runs_the_backend(home: Path, serving: tuple[subprocess.Popen[str], int]) -> None:
    """It sets up, answers healthily beside a `keep` command, and exits cleanly."""
    process, port = serving
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if '"status":"listening"' in line:
            break
    else:
        pytest.fail(f"it did not start: {process.communicate()[1]}")
    with urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
        assert json.load(answer) == {"status": "ok", "db": "connected"}
    with start(home, port, "keep", "retention", "plan") as keeping:
        plan, problems = keeping.communicate(timeout=100)
    assert keeping.returncode == 0, problems
    assert "inbound_events" in plan + problems
    assert "chat_sessions" in plan + problems
    process.send_signal(signal.SIGTERM)
    rest, progress = process.communicate(timeout=60)
    assert process.returncode == 0, progress
    assert [line for line in (*lines, *rest.splitlines()) if not isinstance(json.loads(line), dict)] == []
    assert "setting up .venv" in progress
    assert ".venv is ready" in progress

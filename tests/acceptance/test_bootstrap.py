"""dev.py in small checkouts: set-up, interruptions and error messages."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkout import BASE_PYTHON, NOBODY, Checkout, make_checkout, python_for_others

NOBODY_HERE = NOBODY if os.geteuid() == 0 else None


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout that is not set up yet."""
    return make_checkout(tmp_path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter; pytest's own folders are private."""
    folder = Path(tempfile.mkdtemp(prefix="dev-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["/bin/chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The URL of a package index that accepts connections and never answers, so pip waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def started(finished: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Check that the start succeeded, and return what the small backend printed about it."""
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, object] = json.loads(finished.stdout)
    return answer


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read a process's stderr up to the line that contains the text."""
    seen = ""
    for line in process.stderr or ():
        seen += line
        if text in line:
            return seen
    pytest.fail(f"{text!r} is not in {seen!r}")


def children(pid: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [grandchild for child in found for grandchild in children(child)]


def wait_for_children(pid: int, count: int) -> list[int]:
    """Wait until a process has that many descendants."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if len(found := children(pid)) >= count:
                return found
        time.sleep(0.05)
    pytest.fail(f"process {pid} never had {count} descendants")


def test_the_first_start_sets_up_and_the_second_only_runs(checkout: Checkout) -> None:
    """Only the program writes to stdout, progress goes to stderr, and a second start installs nothing."""
    first = checkout.run("serve", "--port", "0", PYTHONPATH="/nowhere", PIP_USER="1", PIP_TARGET="/nowhere")
    expected = {"arguments": ["serve", "--port", "0"], "prefix": str(checkout.root / ".venv")}
    assert started(first) == expected
    assert "setting up .venv" in first.stderr
    assert ".venv is ready" in first.stderr
    second = checkout.run("keep", "retention", "plan", PIP_FIND_LINKS=None)
    assert started(second) == {**expected, "arguments": ["keep", "retention", "plan"]}
    assert second.stderr == ""
    script = [str(checkout.root / ".venv/bin/backend-program"), "x"]
    assert json.loads(subprocess.check_output(script))["arguments"] == ["x"]
    metadata = "from importlib.metadata import version; print(version('watchkeeper'), version('backend'))"
    assert subprocess.check_output([checkout.root / ".venv/bin/python", "-c", metadata]) == b"7.0 7.0\n"
    assert not (checkout.root / ".venv-test").exists()


def test_bench_has_its_own_environment(checkout: Checkout) -> None:
    """It runs from the checkout, and its dependencies stay out of the environment of serve."""
    shutil.copytree(checkout.root / "src/small", checkout.root / "bench")
    measured = checkout.run("bench", "--quick")
    assert started(measured) == {"arguments": ["--quick"], "prefix": str(checkout.root / ".venv-bench")}
    assert "setting up .venv-bench" in measured.stderr
    assert not (checkout.root / ".venv").exists()


def test_environment_can_be_rebuilt_by_its_own_python(checkout: Checkout) -> None:
    """With .venv activated, dev.py runs from the environment that it is about to clear."""
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", str(checkout.root / ".venv")], check=True)
    again = checkout.run("serve", python=str(checkout.root / ".venv/bin/python"))
    assert started(again)["prefix"] == str(checkout.root / ".venv")
    assert "setting up .venv" in again.stderr


def test_two_concurrent_first_starts_set_up_once(checkout: Checkout) -> None:
    """The second waits, says so, and then runs in the environment that the first has built."""
    first = checkout.start("serve")
    wait_for(first, "setting up .venv")
    second = checkout.run("traffic")
    stdout, _ = first.communicate(timeout=60)
    assert first.returncode == 0
    assert json.loads(stdout)["arguments"] == ["serve"]
    assert started(second)["arguments"] == []
    assert second.stderr == "dev.py: waiting for another process that uses .venv ...\n"


def test_environment_is_not_cleared_while_the_backend_runs(checkout: Checkout) -> None:
    """After a change of the lock file, the next start waits for the backend that still runs."""
    with checkout.start("serve", "--stay") as serving:
        assert serving.stdout is not None
        assert json.loads(serving.stdout.readline())["arguments"] == ["serve", "--stay"]
        with (checkout.root / "requirements.lock").open("a", encoding="utf-8") as lock:
            lock.write("# another lock\n")
        with checkout.start("keep") as keeping:
            assert "setting up" not in wait_for(keeping, "waiting for another process")
            assert (checkout.root / ".venv/.stamp").exists()
            serving.communicate(timeout=60)
            stdout, stderr = keeping.communicate(timeout=60)
    assert json.loads(stdout)["arguments"] == ["keep"]
    assert "setting up .venv" in stderr


def test_killed_set_up_is_repeated_by_the_next_start(checkout: Checkout, silent_index: str) -> None:
    """After kill -9 of dev.py its pip still runs: the next start waits for it, then starts from scratch."""
    killed = checkout.start("serve", PIP_NO_INDEX=None, PIP_INDEX_URL=silent_index)
    pip = wait_for_children(killed.pid, 2)
    killed.kill()
    killed.communicate(timeout=60)
    assert (checkout.root / ".venv/bin/python").exists()
    with checkout.start("serve") as second:
        wait_for(second, "waiting for another process")
        for pid in reversed(pip):
            os.kill(pid, signal.SIGTERM)
        stdout, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert json.loads(stdout)["arguments"] == ["serve"]


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted; the next start sets up an unfinished environment from scratch"),
        (signal.SIGTERM, 143, ""),
    ],
)
def test_interrupting_the_set_up_also_stops_pip(
    checkout: Checkout, silent_index: str, sent: signal.Signals, code: int, said: str
) -> None:
    """Ctrl-C and SIGTERM end the whole set-up with the code that shells expect."""
    with checkout.start("serve", PIP_NO_INDEX=None, PIP_INDEX_URL=silent_index) as process:
        pip = wait_for_children(process.pid, 2)
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert said in stderr
    assert "Traceback" not in stderr
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pip) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pip if Path(f"/proc/{pid}").exists()] == []


def test_unreachable_index_is_reported(checkout: Checkout) -> None:
    """The message names the likely causes, and the set-up does not count as finished."""
    closed = "http://127.0.0.1:9/simple"
    away = checkout.run(
        "serve", PIP_NO_INDEX=None, PIP_FIND_LINKS=None, PIP_INDEX_URL=closed, PIP_RETRIES="1"
    )
    assert away.returncode == 1
    assert away.stdout == ""
    assert away.stderr.splitlines()[-1].startswith(
        "dev.py: pip could not reach its package index: check the network"
    )
    assert not (checkout.root / ".venv/.stamp").exists()


def test_missing_wheel_is_reported(checkout: Checkout, tmp_path: Path) -> None:
    """The message names the package and the supported machines."""
    (tmp_path / "empty").mkdir()
    finished = checkout.run("serve", PIP_FIND_LINKS=str(tmp_path / "empty"))
    assert finished.returncode == 1
    assert "has no wheel of flit-core==" in finished.stderr
    assert "not musl or 32 bit" in finished.stderr


def test_package_that_differs_from_its_hash_is_refused(checkout: Checkout) -> None:
    """A changed wheel is not installed."""
    (wheel,) = checkout.wheels.iterdir()
    with wheel.open("ab") as file:
        file.write(b"\0")
    finished = checkout.run("serve")
    assert finished.returncode == 1
    assert "a package does not match its hash in requirements.lock" in finished.stderr
    assert not (checkout.root / ".venv/lib").joinpath("flit_core").exists()


def test_missing_pip_is_reported(checkout: Checkout, tmp_path: Path) -> None:
    """The message names Debian's package."""
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    finished = checkout.run("serve", python=str(tmp_path / "bare/bin/python"))
    assert finished.returncode == 1
    assert "has no pip: apt install python3-pip" in finished.stderr


def test_old_pip_is_reported(checkout: Checkout, tmp_path: Path) -> None:
    """Before 22.3, pip could not install into another environment."""
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", str(tmp_path / "old")], check=True)
    (site,) = (tmp_path / "old/lib").glob("python3.*/site-packages")
    (site / "pip.py").write_text('raise SystemExit("no such option: --python")\n', encoding="utf-8")
    finished = checkout.run("serve", python=str(tmp_path / "old/bin/python"))
    assert finished.returncode == 1
    assert "pip is too old" in finished.stderr
    assert "-m pip install --user --upgrade 'pip>=22.3'" in finished.stderr


def test_reader_runs_what_the_owner_has_set_up(open_folder: Path) -> None:
    """A user without write access can run it; if a set-up is needed, the message says whom to ask."""
    checkout = make_checkout(open_folder)
    python = python_for_others() if NOBODY_HERE else BASE_PYTHON
    assert checkout.run("serve", python=python).returncode == 0
    if NOBODY_HERE is None:
        subprocess.run(["/bin/chmod", "-R", "a-w", str(checkout.root)], check=True)
    reader = checkout.run("serve", python=python, user=NOBODY_HERE)
    assert started(reader)["arguments"] == ["serve"]
    refused = checkout.run("test", python=python, user=NOBODY_HERE)
    assert refused.returncode == 1
    assert ".venv-test is not set up for this checkout and Python" in refused.stderr
    assert "ask its owner to run this command once" in refused.stderr


def test_ordinary_user_can_set_up_their_own_clone(open_folder: Path) -> None:
    """The set-up needs no root, no writable home and no venv package."""
    checkout = make_checkout(open_folder)
    python = python_for_others() if NOBODY_HERE else BASE_PYTHON
    if NOBODY_HERE is not None:
        subprocess.run(["/bin/chown", "-R", str(NOBODY), str(checkout.root)], check=True)
    mine = checkout.run("serve", python=python, user=NOBODY_HERE, HOME="/nonexistent")
    assert started(mine)["prefix"] == str(checkout.root / ".venv")

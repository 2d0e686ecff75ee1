"""dev.py in small checkouts: what it sets up, what it survives, and what it says when it cannot."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.checkout import BASE_PYTHON, NOBODY, Checkout, make_checkout, python_for_others

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY_HERE = NOBODY if os.geteuid() == 0 else None


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout that is not set up yet."""
    return make_checkout(tmp_path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter: pytest's own are for the user of the test run alone."""
    folder = Path(tempfile.mkdtemp(prefix="dev-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["/bin/chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The URL of a package index that takes connections and never answers: pip waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def started(finished: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """What the small backend says of how it was started, after a start without an error."""
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, object] = json.loads(finished.stdout)
    return answer


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read a process's stderr up to the line that holds the text."""
    seen = ""
    for line in process.stderr or ():
        seen += line
        if text in line:
            return seen
    pytest.fail(f"{text!r} is not in {seen!r}")


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
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
    """Only the program writes to stdout, progress goes to stderr, and a second start needs no package."""
    first = checkout.run("serve", "--port", "0", PYTHONPATH="/nowhere", PIP_USER="1", PIP_TARGET="/nowhere")
    expected = {"arguments": ["serve", "--port", "0"], "prefix": str(checkout.root / ".venv")}
    assert started(first) == expected
    assert "setting up .venv" in first.stderr
    assert ".venv is ready after" in first.stderr
    second = checkout.run("keep", "retention", "plan", PIP_FIND_LINKS=None)
    assert started(second) == {**expected, "arguments": ["keep", "retention", "plan"]}
    assert second.stderr == ""
    script = [str(checkout.root / ".venv/bin/backend-program"), "x"]
    assert json.loads(subprocess.check_output(script))["arguments"] == ["x"]
    metadata = "from importlib.metadata import version; print(version('watchkeeper'), version('backend'))"
    assert subprocess.check_output([checkout.root / ".venv/bin/python", "-c", metadata]) == b"7.0 7.0\n"
    assert not (checkout.root / ".venv-test").exists()


def test_the_bench_has_an_environment_of_its_own(checkout: Checkout) -> None:
    """Its package is the checkout's and not installed; the peers do not get into what serve runs in."""
    shutil.copytree(checkout.root / "src/small", checkout.root / "bench")
    measured = checkout.run("bench", "--quick")
    assert started(measured) == {"arguments": ["--quick"], "prefix": str(checkout.root / ".venv-bench")}
    assert "setting up .venv-bench" in measured.stderr
    assert not (checkout.root / ".venv").exists()


def test_the_environments_own_python_can_make_it_again(checkout: Checkout) -> None:
    """Who has activated .venv starts dev.py out of the environment that is about to be cleared."""
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", str(checkout.root / ".venv")], check=True)
    again = checkout.run("serve", python=str(checkout.root / ".venv/bin/python"))
    assert started(again)["prefix"] == str(checkout.root / ".venv")
    assert "setting up .venv" in again.stderr


def test_two_first_starts_at_once_set_up_once(checkout: Checkout) -> None:
    """The second waits, says so, and then runs in what the first has made."""
    first = checkout.start("serve")
    wait_for(first, "setting up .venv")
    second = checkout.run("traffic")
    stdout, _ = first.communicate(timeout=60)
    assert first.returncode == 0
    assert json.loads(stdout)["arguments"] == ["serve"]
    assert started(second)["arguments"] == []
    assert second.stderr == "dev.py: another process sets up .venv or runs from it, waiting for it ...\n"


def test_nothing_is_cleared_under_a_running_backend(checkout: Checkout) -> None:
    """Who has pulled another lock waits for the one who still serves from the old environment."""
    with checkout.start("serve", "--stay") as serving:
        assert serving.stdout is not None
        assert json.loads(serving.stdout.readline())["arguments"] == ["serve", "--stay"]
        with (checkout.root / "requirements.lock").open("a", encoding="utf-8") as lock:
            lock.write("# another lock\n")
        with checkout.start("keep") as keeping:
            assert "setting up" not in wait_for(keeping, "or runs from it, waiting for it")
            assert (checkout.root / ".venv/.stamp").exists()
            serving.communicate(timeout=60)
            stdout, stderr = keeping.communicate(timeout=60)
    assert json.loads(stdout)["arguments"] == ["keep"]
    assert "setting up .venv" in stderr


def test_a_killed_set_up_is_waited_for_and_healed(checkout: Checkout, silent_index: str) -> None:
    """After kill -9 of dev.py its pip still writes: the next start waits for it, clears and begins anew."""
    killed = checkout.start("serve", PIP_NO_INDEX=None, PIP_INDEX_URL=silent_index)
    pip = wait_for_children(killed.pid, 2)
    killed.kill()
    killed.communicate(timeout=60)
    assert (checkout.root / ".venv/bin/python").exists()
    with checkout.start("serve") as second:
        wait_for(second, "waiting for it")
        for pid in reversed(pip):
            os.kill(pid, signal.SIGTERM)
        stdout, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert json.loads(stdout)["arguments"] == ["serve"]


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted; a set-up that is not finished begins anew"),
        (signal.SIGTERM, 143, ""),
    ],
)
def test_an_interrupted_set_up_takes_pip_with_it(
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


def test_a_network_that_is_away_is_said(checkout: Checkout) -> None:
    """A closed port stands for no network; nothing then looks like a finished set-up."""
    closed = "http://127.0.0.1:9/simple"
    away = checkout.run(
        "serve", PIP_NO_INDEX=None, PIP_FIND_LINKS=None, PIP_INDEX_URL=closed, PIP_RETRIES="1"
    )
    assert away.returncode == 1
    assert away.stdout == ""
    assert "the package index does not answer, pip tries again" in away.stderr
    assert away.stderr.splitlines()[-1].startswith("dev.py: pip did not reach its package index: look at the")
    assert not (checkout.root / ".venv/.stamp").exists()


def test_a_machine_without_a_wheel_is_said(checkout: Checkout, tmp_path: Path) -> None:
    """An index without the package looks to pip like a machine for which there is no wheel."""
    (tmp_path / "empty").mkdir()
    finished = checkout.run("serve", PIP_FIND_LINKS=str(tmp_path / "empty"))
    assert finished.returncode == 1
    assert "has no wheel of flit-core==" in finished.stderr
    assert "not for musl or 32 bit" in finished.stderr


def test_a_package_that_differs_from_its_hash_is_refused(checkout: Checkout) -> None:
    """What the lock does not know is not installed."""
    (wheel,) = checkout.wheels.iterdir()
    with wheel.open("ab") as file:
        file.write(b"\0")
    finished = checkout.run("serve")
    assert finished.returncode == 1
    assert "a package differs from its hash in requirements.lock" in finished.stderr
    assert not (checkout.root / ".venv/lib").joinpath("flit_core").exists()


def test_a_python_without_pip_is_told_how_to_get_it(checkout: Checkout, tmp_path: Path) -> None:
    """The sentence names Debian's package; nothing is made."""
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    finished = checkout.run("serve", python=str(tmp_path / "bare/bin/python"))
    assert finished.returncode == 1
    assert "has no pip: apt install python3-pip" in finished.stderr
    assert not (checkout.root / ".venv").exists()


def test_a_pip_too_old_is_told_how_to_be_renewed(checkout: Checkout, tmp_path: Path) -> None:
    """Before 22.3 pip could not install into another environment."""
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", str(tmp_path / "old")], check=True)
    (site,) = (tmp_path / "old/lib").glob("python3.*/site-packages")
    (site / "pip.py").write_text('print("pip 22.2.2 from /somewhere (python 3.11)")\n', encoding="utf-8")
    finished = checkout.run("serve", python=str(tmp_path / "old/bin/python"))
    assert finished.returncode == 1
    assert "pip 22.2.2 is too old, 22.3 or newer is needed" in finished.stderr
    assert "-m pip install --user --upgrade pip" in finished.stderr


def test_who_may_not_write_runs_what_the_owner_has_set_up(open_folder: Path) -> None:
    """A reader of the checkout runs it, and after a change is told whom to ask."""
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
    assert "let its owner run this command once" in refused.stderr


def test_an_ordinary_user_sets_up_a_clone_of_their_own(open_folder: Path) -> None:
    """Nothing of the set-up needs root, a home that can be written, or the venv package of Debian."""
    checkout = make_checkout(open_folder)
    python = python_for_others() if NOBODY_HERE else BASE_PYTHON
    if NOBODY_HERE is not None:
        subprocess.run(["/bin/chown", "-R", str(NOBODY), str(checkout.root)], check=True)
    mine = checkout.run("serve", python=python, user=NOBODY_HERE, HOME="/nonexistent")
    assert started(mine)["prefix"] == str(checkout.root / ".venv")


def test_a_terminal_sees_how_far_the_set_up_is(checkout: Checkout) -> None:
    """On a terminal one line counts the packages and is wiped at the end."""
    ours, theirs = pty.openpty()
    command = [BASE_PYTHON, str(checkout.root / "dev.py"), "serve"]
    with subprocess.Popen(
        command, env=checkout.environ(), stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
            while piece := os.read(ours, 4096):
                seen += piece
    os.close(ours)
    assert process.returncode == 0
    assert b"\r\x1b[K    1 of 1: flit_core-" in seen
    assert b"\r\x1b[K    installing" in seen

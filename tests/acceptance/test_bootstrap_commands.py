"""`dev.py test` and `dev.py check` in a small checkout."""

import os
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

from support.checkout import BASE_PYTHON, Checkout, make_checkout

SETTINGS = """
[tool.coverage.run]
branch = true
source = ["src"]
parallel = true
patch = ["subprocess"]
disable_warnings = ["no-data-collected"]  # in pytest's first process, which runs no test itself

[tool.coverage.report]
fail_under = 95

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
addopts = ["-p", "no:randomly", "-p", "no:asyncio"]

[tool.ruff]
exclude = ["dev.py"]

[tool.mypy]
files = ["src"]
"""
MODULE = '''\
"""Sizes."""


def size(number: int) -> str:
    """Tell large from small."""
    if number > 1:
        return "large"
    return "small"
'''
TESTS = """\
from small.sizes import size


def test_large() -> None:
    assert size(2) == "large"


def test_small() -> None:
    assert size(1) == "small"
"""
SLOW_TEST = """\
import time


def test_slow() -> None:
    print("\\nasleep", flush=True)
    time.sleep(60)
"""
# Marks .venv-test as set up: it uses the packages of this test run instead of installing them again. The
# second line of the .pth file is what coverage installs for the processes that pytest starts.
BORROW = """
import dev, pathlib, subprocess, sys
subprocess.run([sys.executable, "-m", "venv", "--without-pip", dev.TEST.folder], check=True)
(site,) = dev.TEST.folder.glob("lib/python3.*/site-packages")
(site / "borrowed.pth").write_text(sys.argv[1] + "\\nimport coverage; coverage.process_startup()\\n")
dev.TEST.stamp.write_text(dev.TEST.fingerprint())
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout with a test environment, one module and its tests."""
    made = make_checkout(tmp_path)
    (made.root / "src/small/__main__.py").unlink()
    (made.root / "src/small/sizes.py").write_text(MODULE, encoding="utf-8")
    (made.root / "tests").mkdir()
    (made.root / "tests/test_sizes.py").write_text(TESTS, encoding="utf-8")
    with (made.root / "pyproject.toml").open("a", encoding="utf-8") as settings:
        settings.write(SETTINGS)
    borrow = [BASE_PYTHON, "-c", BORROW, sysconfig.get_path("purelib")]
    subprocess.run(borrow, cwd=made.root, check=True, env=made.environ(PYTHONDONTWRITEBYTECODE="1"))
    return made


def test_full_run_ends_with_the_coverage_report(checkout: Checkout) -> None:
    """The branch report follows pytest's last line, and no data file remains."""
    finished = checkout.run("test")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    closing, report = finished.stdout.split(" passed in ", 1)
    assert closing.endswith("2")
    assert "Branch" in report
    assert report.splitlines()[-1].endswith("100%")
    assert finished.stderr == ""
    assert list(checkout.root.glob(".coverage*")) == []


def test_coverage_limit_applies_only_to_a_full_run(checkout: Checkout) -> None:
    """A part of the tests cannot reach it."""
    some = checkout.run("test", "-k", "large")
    assert some.returncode == 0, some.stdout + some.stderr
    assert "1 passed, 1 deselected" in some.stdout.splitlines()[-1]
    lines = TESTS.splitlines(keepends=True)[:5]
    (checkout.root / "tests/test_sizes.py").write_text("".join(lines), encoding="utf-8")
    everything = checkout.run("test")
    assert everything.returncode == 2
    assert "less than fail-under=95" in everything.stdout


def test_no_coverage_report_follows_failed_tests(checkout: Checkout) -> None:
    """It would hide the failures."""
    tests = checkout.root / "tests/test_sizes.py"
    tests.write_text(TESTS.replace('== "small"', '== "tiny"'), encoding="utf-8")
    finished = checkout.run("test")
    assert finished.returncode == 1
    assert "1 failed, 1 passed" in finished.stdout.splitlines()[-1]


def start_slow_tests(checkout: Checkout) -> subprocess.Popen[str]:
    """Start a test that takes a minute, and wait until it runs."""
    (checkout.root / "tests/test_sizes.py").write_text(SLOW_TEST, encoding="utf-8")
    command = [BASE_PYTHON, str(checkout.root / "dev.py"), "test", "-s"]
    environ = checkout.environ()
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert "asleep\n" in iter(process.stdout.readline, "")
    return process


def test_ctrl_c_lets_pytest_finish(checkout: Checkout) -> None:
    """The terminal signals the whole process group: pytest tears down and reports, dev.py waits for it."""
    with start_slow_tests(checkout) as process:
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in rest


def test_sigterm_reaches_the_tests(checkout: Checkout) -> None:
    """Stopping dev.py stops the tests."""
    with start_slow_tests(checkout) as process:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_check_runs_every_linter_after_a_finding(checkout: Checkout) -> None:
    """One run shows every finding; a clean checkout passes."""
    clean = checkout.run("check")
    assert clean.returncode == 0, clean.stdout + clean.stderr
    worse = MODULE.replace('return "small"', "return  1").replace('"""Sizes."""', "import os")
    (checkout.root / "src/small/sizes.py").write_text(worse, encoding="utf-8")
    finished = checkout.run("check")
    assert finished.returncode == 1
    assert "F401" in finished.stdout
    assert "1 file would be reformatted" in finished.stdout
    assert "Incompatible return value type" in finished.stdout

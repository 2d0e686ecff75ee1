"""How commands find the service's keeper, and their usage errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.service import without_database
from watchkeeper import __version__
from watchkeeper.cli import main
from watchkeeper.cli._app import VARIABLE, find_keeper
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.keeper import Watchkeeper

BARE = "support.service:without_database"


@pytest.fixture(autouse=True)
def _no_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def bare() -> Watchkeeper:
    """The keeper of a service without a database."""
    return without_database()


def test_keeper_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the option or by the environment; a function is called."""
    assert isinstance(find_keeper(BARE), Watchkeeper)
    monkeypatch.setenv(VARIABLE, BARE)
    assert isinstance(find_keeper(None), Watchkeeper)
    with pytest.raises(ConfigurationError, match="is a str, not a Watchkeeper"):
        find_keeper("support.service:NOT_A_KEEPER")


def test_keeper_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `python -m`, the service need not be installed."""
    program = "from support.service import without_database\nkeeper = without_database()\n"
    (tmp_path / "uninstalled_service.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # restores sys.path at the end
    assert isinstance(find_keeper("uninstalled_service:keeper"), Watchkeeper)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (None, "Name the service's keeper by --app"),
        ("", "Name the service's keeper"),
        ("support.service", "'support.service' does not name a keeper: write it like"),
        (":keeper", "does not name a keeper"),
        ("support.service:", "does not name a keeper"),
        ("support.service:keper", "Did you mean support.service:keeper."),
        ("support.service:zzz", r"The module support.service has no zzz\.$"),
        ("support.kepd:keeper", "There is no module support.kepd"),
    ],
)
def test_invalid_name_of_a_keeper_is_refused(name: str | None, sentence: str) -> None:
    """The message says how to write it, or suggests a similar name."""
    with pytest.raises(ConfigurationError, match=sentence):
        find_keeper(name)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--app", "support.service:keper", "retention", "plan"], "Did you mean support.service:keeper?"),
        (["--app", BARE, "db", "status"], "This service has no database."),
        (["--app", BARE, "retention", "plan"], "There is no retention: declare policies"),
        (["--app", BARE, "audit", "list"], "This service has no database"),
    ],
)
def test_errors_are_one_line(capfd: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    """The exit code is 2, stderr has one line, and stdout nothing."""
    assert main(arguments) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("watchkeeper: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["bogus"], 2),
        (["retention"], 2),
        (["retention", "plan", "--bogus"], 2),
        (["audit", "list", "--limit", "0"], 2),
        (["audit", "list", "--limit", "many"], 2),
        (["--help"], 0),
        (["db", "dump", "--help"], 0),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    """Argparse's SystemExit becomes an exit code."""
    assert main(arguments) == code
    said = capsys.readouterr()
    assert "usage: watchkeeper" in (said.out if code == 0 else said.err)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of the program itself has a line for each command of each group."""
    assert main(["--help"]) == 0
    lines = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {"plan", "run", "hold add", "hold release", "list", "dump", "migrate"} <= set(lines)


def test_module_is_executable() -> None:
    """`python -m watchkeeper` is the same program."""
    command = [sys.executable, "-m", "watchkeeper", "--version"]
    assert subprocess.check_output(command, text=True) == f"watchkeeper {__version__}\n"


def test_service_passes_its_own_keeper(capfd: pytest.CaptureFixture[str], bare: Watchkeeper) -> None:
    """`realestate-backend keep` needs no --app, and has its own program name."""
    assert main(["db", "status"], keeper=bare) == 2
    assert capfd.readouterr().err == "keep: This service has no database.\n"
    assert main(["--app", "x:y", "db", "status"], keeper=bare) == 2
    assert "usage: keep" in capfd.readouterr().err

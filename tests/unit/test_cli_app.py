"""How the commands find the service's keeper, and what they say when they do not understand."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.service import without_database
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
    """The keeper of a service without data."""
    return without_database()


def test_a_keeper_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option wins over the environment; a function is called."""
    assert isinstance(find_keeper(BARE), Watchkeeper)
    monkeypatch.setenv(VARIABLE, BARE)
    assert isinstance(find_keeper(None), Watchkeeper)
    with pytest.raises(ConfigurationError, match="is a str, not a Watchkeeper"):
        find_keeper("support.service:NOT_A_KEEPER")


def test_a_keeper_is_found_in_the_folder_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `python -m`, a service that is not installed is found where its files are."""
    program = "from support.service import without_database\nkeeper = without_database()\n"
    (tmp_path / "a_service_of_ours.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # restores sys.path at the end
    assert isinstance(find_keeper("a_service_of_ours:keeper"), Watchkeeper)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (None, "Which service. Name its keeper by --app"),
        ("", "Which service"),
        ("support.service", "'support.service' does not name a keeper: it looks like"),
        (":keeper", "does not name a keeper"),
        ("support.service:", "does not name a keeper"),
        ("support.service:keper", "Did you mean support.service:keeper."),
        ("support.service:zzz", r"The module support.service has no zzz\.$"),
        ("support.kepd:keeper", "There is no module support.kepd"),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_what_is_near(name: str | None, sentence: str) -> None:
    """Each has its sentence."""
    with pytest.raises(ConfigurationError, match=sentence):
        find_keeper(name)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--app", "support.service:keper", "retention", "plan"], "Did you mean support.service:keeper?"),
        (["--app", BARE, "db", "status"], "This service has no database."),
        (["--app", BARE, "retention", "plan"], "This service has no database"),
        (["--app", BARE, "audit", "list"], "This service has no database"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    capfd: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    """Exit code 2, one line on stderr, nothing on stdout."""
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
    """Argparse's own answers come as exit codes, not as SystemExit."""
    assert main(arguments) == code
    said = capsys.readouterr()
    assert "usage: watchkeeper" in (said.out if code == 0 else said.err)


def test_a_program_of_its_own_hands_its_keeper_over(
    capfd: pytest.CaptureFixture[str], bare: Watchkeeper
) -> None:
    """`realestate-backend keep` needs no --app, and goes by its own name."""
    assert main(["db", "status"], keeper=bare) == 2
    assert capfd.readouterr().err == "keep: This service has no database.\n"
    assert main(["--app", "x:y", "db", "status"], keeper=bare) == 2
    assert "usage: keep" in capfd.readouterr().err

import os
import stat
import threading
from pathlib import Path

import pytest

from realestate.made_secrets import FILE_NAME, complete_secrets, read_secrets
from realestate.settings import BackendSettings
from support.metrics import run_together
from watchkeeper.exceptions import ConfigurationError


def test_first_start_generates_the_missing_secrets(tmp_path: Path) -> None:
    """They are written to a file of mode 0600 in the state folder, and the operator sees where."""
    folder = tmp_path / "state" / "realestate-backend"
    environ, notice = complete_secrets({"PATH": "x"}, folder)
    path = folder / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert notice == f"generated SERVICE_TOKEN and WEBHOOK_SECRETS in {path}"
    assert environ["PATH"] == "x"
    settings = BackendSettings.from_env(environ)
    assert settings.service_token is not None
    assert list(settings.webhook_secrets) == ["moltbot"]
    assert all(len(one.reveal()) >= 43 for one in settings.secrets())
    assert "METRICS_TOKEN" not in environ
    assert [entry.name for entry in folder.iterdir()] == [FILE_NAME]


def test_next_start_uses_the_same(tmp_path: Path) -> None:
    """Generated secrets stay, so that clients can keep them."""
    first, _ = complete_secrets({}, tmp_path)
    second, notice = complete_secrets({}, tmp_path)
    assert second == first
    assert notice == f"using SERVICE_TOKEN and WEBHOOK_SECRETS of {tmp_path / FILE_NAME}"


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    """A secret of the environment is used as it is; only the other comes from the file."""
    environ, notice = complete_secrets({"SERVICE_TOKEN": "mine", "WEBHOOK_SECRETS": ""}, tmp_path)
    assert environ["SERVICE_TOKEN"] == "mine"
    assert environ["WEBHOOK_SECRETS"] == read_secrets(tmp_path / FILE_NAME)["WEBHOOK_SECRETS"]
    assert notice == f"generated WEBHOOK_SECRETS in {tmp_path / FILE_NAME}"


def test_complete_environment_needs_no_file(tmp_path: Path) -> None:
    """With both secrets set nothing is written and nothing is printed."""
    given = {"SERVICE_TOKEN": "a", "WEBHOOK_SECRETS": "b=c"}
    assert complete_secrets(given, tmp_path / "none") == (given, None)
    assert not (tmp_path / "none").exists()


def test_concurrent_starts_agree(tmp_path: Path) -> None:
    """One of them generates the secrets, and all use them."""
    barrier, seen = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        seen.append(complete_secrets({}, tmp_path / "deep" / "er"))

    run_together(*[start] * 8)
    assert len({environ["SERVICE_TOKEN"] for environ, _ in seen}) == 1
    assert [notice.split()[0] for _, notice in seen if notice].count("generated") == 1
    assert [entry.name for entry in (tmp_path / "deep" / "er").iterdir()] == [FILE_NAME]


def test_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """The message says how to fix it."""
    complete_secrets({}, tmp_path)
    (tmp_path / FILE_NAME).chmod(0o640)
    with pytest.raises(ConfigurationError, match="may be read by others: chmod 600"):
        complete_secrets({}, tmp_path)


def test_file_that_lost_a_secret_is_refused(tmp_path: Path) -> None:
    """A file that was edited is not silently completed with other secrets."""
    descriptor = os.open(tmp_path / FILE_NAME, os.O_CREAT | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write("# mine\n\nSERVICE_TOKEN=x\n")
    with pytest.raises(ConfigurationError, match="lacks WEBHOOK_SECRETS: restore it, or remove the file"):
        complete_secrets({}, tmp_path)


def test_unusable_folder_is_one_sentence(tmp_path: Path) -> None:
    """The message says what to set instead."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="Set them in the environment, or WATCHKEEPER_STATE_DIR"):
        complete_secrets({}, tmp_path / "file" / "below")

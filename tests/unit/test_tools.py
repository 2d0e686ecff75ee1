"""What a test gets that asks for an external program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.tools import require_postgres, require_tool

if TYPE_CHECKING:
    from pathlib import Path


def program(path: Path) -> Path:
    """An executable file at that path."""
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_program_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH is where a tool is looked for first."""
    tool = program(tmp_path / "watchtool")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert require_tool("watchtool") == tool


def test_a_program_is_found_under_debians_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian renames Alertmanager; the tests use the project's name."""
    tool = program(tmp_path / "prometheus-alertmanager")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert require_tool("alertmanager") == tool


def test_a_program_is_found_in_a_further_folder_or_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further path is a folder that holds the tool, or the tool itself."""
    monkeypatch.setenv("PATH", "")
    tool = program(tmp_path / "watchtool")
    assert require_tool("watchtool", tmp_path) == tool
    assert require_tool("other", tool) == tool


def test_a_file_that_cannot_be_run_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the executable bit the file does not count."""
    (tmp_path / "watchtool").touch(mode=0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="watchtool is not installed"):
        require_tool("watchtool")


def test_a_missing_program_skips_with_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside CI the test is listed as skipped, and the reason names Debian's package."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="nosuchtool is not installed: apt install nosuchtool"):
        require_tool("nosuchtool")
    with pytest.raises(
        pytest.skip.Exception, match="PostgreSQL 7 is not installed: apt install postgresql-7"
    ):
        require_postgres(7)


def test_a_missing_program_fails_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI set a missing tool is a failure, never a silent hole."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="nosuchtool is not installed"):
        require_tool("nosuchtool")

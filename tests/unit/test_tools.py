"""How tests find external programs."""

from pathlib import Path

import pytest

from support.tools import require_postgres, require_tool


def program(path: Path) -> Path:
    """Create an executable file at the path."""
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_program_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH is searched first, also for a tool that Debian renames."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, file in (("watchtool", "watchtool"), ("alertmanager", "prometheus-alertmanager")):
        tool = program(tmp_path / file)
        assert require_tool(name) == tool


def test_program_is_found_in_a_folder_or_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further path is a folder with the tool, or the tool itself."""
    monkeypatch.setenv("PATH", "")
    tool = program(tmp_path / "watchtool")
    assert require_tool("watchtool", tmp_path) == tool
    assert require_tool("other", tool) == tool


def test_file_without_execute_permission_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not count as the tool."""
    (tmp_path / "watchtool").touch(mode=0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="watchtool is not installed"):
        require_tool("watchtool")


def test_missing_program_skips_and_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside CI; the reason names Debian's package."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="nosuchtool is not installed: apt install nosuchtool"):
        require_tool("nosuchtool")
    with pytest.raises(
        pytest.skip.Exception, match="PostgreSQL 7 is not installed: apt install postgresql-7"
    ):
        require_postgres(7)


def test_missing_program_fails_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI set it is never a silent hole."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="nosuchtool is not installed"):
        require_tool("nosuchtool")

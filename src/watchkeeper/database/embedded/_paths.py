"""The files of an embedded server: one state folder, and sockets, whose path must be short."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from watchkeeper.database.embedded._account import closed_folder
from watchkeeper.exceptions import EmbeddedServerError

if TYPE_CHECKING:
    from watchkeeper.database.embedded._account import Account

PORT: Final = 5432  # only part of the socket's name
SUPERUSER: Final = "postgres"
# What root in a container needs to run the server as another account.
CAPABILITIES: Final = "SETUID, SETGID, CHOWN and DAC_OVERRIDE"
_SOCKET_PATH_LIMIT: Final = 107  # sun_path of unix(7), less the closing zero
_SHORT_BASE: Final = Path("/tmp")  # noqa: S108 - the same for every process; owner and mode are checked


class Paths:
    """The files and folders of one embedded server; `state` contains no symbolic links."""

    def __init__(self, *, state: Path) -> None:
        self.state = state
        self.data = state / "data"
        self.lock = state / "postgres.lock"  # locked by the process that owns the server
        self.log = state / "postgres.log"  # of bounded size
        self.binaries = state / "binaries"  # copies of programs that the server's account cannot reach
        self.sockets = _socket_folder(state)

    def prepare(self, account: Account) -> None:
        """Create the folders, private to `account`, or raise `EmbeddedServerError`."""
        try:
            self._prepare_state(account)
            _make_private(self.sockets, account)
        except OSError as error:
            raise folder_error(self.state, error) from error

    def _prepare_state(self, account: Account) -> None:
        mode = 0o711 if account.is_other else 0o700
        self.state.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.state.mkdir(mode=mode)
        except FileExistsError:
            pass
        else:
            self.state.chmod(mode)  # regardless of the umask
        if not account.is_other:
            return
        here = self.state.stat()
        if closed_folder(self.state, account) == self.state and here.st_uid == os.geteuid():
            self.state.chmod(stat.S_IMODE(here.st_mode) | stat.S_IXGRP | stat.S_IXOTH)
        if closed := closed_folder(self.state, account):
            raise EmbeddedServerError(
                f"The account {account.name}, which runs PostgreSQL for root, cannot reach {self.state}:"
                f" it may not enter {closed}. Choose a state folder (WATCHKEEPER_STATE_DIR) outside of it,"
                " such as /var/lib/watchkeeper."
            )


def _socket_folder(state: Path) -> Path:
    """Return the private folder of the sockets: in /tmp if a path in the state folder is unusable."""
    plain = state / "run"
    path = os.fsencode(plain / f".s.PGSQL.{PORT}")
    if len(path) <= _SOCKET_PATH_LIMIT and b"," not in path:  # libpq separates hosts with a comma
        return plain
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    return _SHORT_BASE / f"watchkeeper-{digest}"


def _make_private(folder: Path, account: Account) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        if account.is_other:
            os.chown(folder, account.uid, account.gid)
    status = folder.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != account.uid
        or stat.S_IMODE(status.st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
    ):
        raise EmbeddedServerError(
            f"The folder of the database's sockets, {folder}, is not a private folder of {account.name}:"
            " remove it, and the next start creates it again; or choose a state folder on a file system that"
            " supports permissions."
        )


def folder_error(folder: Path, error: OSError) -> EmbeddedServerError:
    """Return the error for an operator when writing to `folder` failed with `error`."""
    where = error.filename or folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EmbeddedServerError(
            f"The disk that holds {folder} is full: free some space, or choose another state folder"
            " (WATCHKEEPER_STATE_DIR)."
        )
    if error.errno == errno.EPERM and os.geteuid() == 0:
        return EmbeddedServerError(
            f"Root lacks a permission ({where}: {error.strerror}): give it the capabilities"
            f" {CAPABILITIES}, or do not run as root."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return EmbeddedServerError(
            f"The state folder {folder} cannot be written ({where}: {error.strerror}): give this account"
            " permission, or choose another state folder (WATCHKEEPER_STATE_DIR)."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return EmbeddedServerError(
            f"The state folder {folder} cannot be created because a file is in the way ({where}): move that"
            " file, or choose another state folder (WATCHKEEPER_STATE_DIR)."
        )
    return EmbeddedServerError(f"The state folder {folder} cannot be used ({where}: {error.strerror}).")

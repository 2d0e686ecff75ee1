"""The account that runs the server: PostgreSQL refuses root, so for root it is an unprivileged account."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import EmbeddedServerError

if TYPE_CHECKING:
    from pathlib import Path

_CANDIDATES: Final = ("nobody", "daemon", "postgres")


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A system account; `is_other` says that it is not the one of this process."""

    name: str
    uid: int
    gid: int
    is_other: bool


def choose_account(data: Path) -> Account:
    """Return this account; for root the owner of the data, else the first unprivileged account."""
    me, owner = os.geteuid(), _owner(data)
    if me != 0:
        if owner not in (None, me):
            raise EmbeddedServerError(
                f"The database in {data} belongs to {_name(owner)}, and this process runs as {_name(me)}: run"
                " it as the user that created the data (root's belongs to an unprivileged account), or choose"
                " another state folder."
            )
        return Account(name=_name(me), uid=me, gid=os.getegid(), is_other=False)
    if owner == 0:
        raise EmbeddedServerError(
            f"The database in {data} belongs to root, as which PostgreSQL does not run: return it to the"
            f" account that ran it, for example with: chown -R {_first_candidate().name}: {data}"
        )
    if owner is None:
        return _first_candidate()
    try:
        entry = pwd.getpwuid(owner)
    except KeyError:
        raise EmbeddedServerError(
            f"The database in {data} belongs to user number {owner}, which does not exist here: give it to"
            f" an account that exists, for example with: chown -R {_first_candidate().name}: {data}"
        ) from None
    return Account(name=entry.pw_name, uid=owner, gid=entry.pw_gid, is_other=True)


def _owner(data: Path) -> int | None:
    try:
        return data.stat().st_uid
    except OSError:
        return None


def _first_candidate() -> Account:
    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid, is_other=True)
    raise EmbeddedServerError(
        f"PostgreSQL does not run as root, and none of the accounts {', '.join(_CANDIDATES)} exists: create"
        " one (useradd --system --no-create-home nobody), run the service as an ordinary user, or set"
        " DATABASE_URL."
    )


def _name(uid: int | None) -> str:
    try:
        return pwd.getpwuid(uid or 0).pw_name
    except KeyError:
        return f"user number {uid}"


def closed_folder(path: Path, account: Account) -> Path | None:
    """Return the first folder on the way to `path`, or `path`, whose mode keeps `account` out."""
    for folder in (*reversed(path.parents), path):
        status = folder.stat()
        if status.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif status.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return folder
    return None

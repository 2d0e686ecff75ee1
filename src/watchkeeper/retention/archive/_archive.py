"""Where rows are written before they are deleted, and read back from.

A segment is the rows of one sweep: a gzip member, whose lines are JSON objects of column and text. An archive
stores the bytes of segments and knows nothing else of them; the ledger says what is in which, and is the only
one to say so: bytes that it does not name are of no account.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote, unquote_to_bytes, urlsplit

from watchkeeper.exceptions import ArchiveError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from watchkeeper.retention._policy import Policy

LARGEST_FILE: Final = 256 << 20
"""A segment that would make its file larger than this begins another one."""

_LONGEST_NAME: Final = 200
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a segment lies.

    Args:
        place: What it is a part of, as the archive that wrote it finds it again: a URL.
        start: The byte that it begins at.
        length: In bytes.
    """

    place: str
    start: int
    length: int


class Archive(Protocol):
    """Stores segments; an object store can be one as well as a folder."""

    async def write(self, table: str, run: int, data: bytes) -> Location:
        """Store a segment so that it outlives a crash of this machine; where that fails, nothing of it stays.

        Args:
            table: The policy's name.
            run: The run's number.
            data: The segment.

        Raises:
            ArchiveError: It cannot be stored now; the message says what mends that.
        """

    async def read(self, location: Location) -> bytes:
        """Return a segment's bytes as they are now; whether they are what was written, the caller checks.

        Args:
            location: Where it lies.

        Raises:
            ArchiveError: There is nothing of that length; the message says where it was looked for.
        """


def check_archive(policies: Iterable[Policy], archive: Archive | None) -> None:
    """See that there is an archive if a policy wants one.

    Args:
        policies: As they were declared.
        archive: Where their rows would go.

    Raises:
        ConfigurationError: There is none.
    """
    for policy in policies:
        if policy.archive and archive is None:
            raise ConfigurationError(
                f"The policy on {policy.name} archives its rows: say where, by the argument archive."
            )


class FolderArchive:
    """An archive in a local folder: `<table>/<run>-0001.jsonl.gz`, whose members are the segments.

    Args:
        folder: Made when it is first written to, closed to everybody else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = ("", 0, 1)  # table, run and part that were written last

    async def write(self, table: str, run: int, data: bytes) -> Location:
        """Append a segment to the run's file, and see to it that it is on the disk.

        Args:
            table: The policy's name.
            run: The run's number.
            data: The segment.

        Raises:
            ArchiveError: The folder or the file cannot be written.
        """
        try:
            return await asyncio.to_thread(self._write, table, run, data)
        except OSError as error:
            raise _not_written(self._folder, error) from error

    async def read(self, location: Location) -> bytes:
        """Return a segment's bytes, from where it was written or from a copy of that file in the folder.

        Args:
            location: Where it lies.

        Raises:
            ArchiveError: The file is missing, too short, or cannot be read.
        """
        url = urlsplit(location.place)
        machine = url.hostname or "this machine"
        if url.scheme != "file":
            raise ArchiveError(
                f"{location.place} is in no folder: use the archive that the service wrote it with."
            )
        written = Path(os.fsdecode(unquote_to_bytes(url.path)))
        here = self._folder / written.parent.name / written.name
        try:
            data = await asyncio.to_thread(_read, (written, here), location)
        except FileNotFoundError as error:
            raise ArchiveError(
                f"The file {written} of {machine} is missing: run this there, or bring the file here, to"
                f" {here}."
            ) from error
        except OSError as error:
            raise ArchiveError(
                f"The file {written} cannot be read ({error.strerror}): let the account that runs this read"
                " it."
            ) from error
        if len(data) < location.length:
            raise ArchiveError(
                f"The file {written} of {machine} ends before byte {location.start + location.length}:"
                f" bring the whole file to {here}."
            )
        return data

    def _write(self, table: str, run: int, data: bytes) -> Location:
        folder = self._folder / _file_name(table)
        self._make(folder)
        part = self._file[2] if self._file[:2] == (table, run) else 1
        while True:
            path = folder / f"{run}-{part:04}.jsonl.gz"
            start = _append(path, data)
            if start is not None:
                self._file = (table, run, part)
                place = f"file://{socket.gethostname()}{quote(os.fsencode(path.absolute()))}"
                return Location(place=place, start=start, length=len(data))
            part += 1

    def _make(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700 if path.is_relative_to(self._folder) else 0o777, exist_ok=True)
            _sync_folder(path.parent)


def _append(path: Path, data: bytes) -> int | None:
    """Append to a file and return where; None if it is large enough already."""
    # Opened by its name each time: what is written to a file that was removed meanwhile would be lost.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        start = os.fstat(file).st_size
        if start and start + len(data) > LARGEST_FILE:
            return None
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
            if not start:
                _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(file, start)  # so that what is there stays a whole gzip file
                if not start:
                    path.unlink()
            raise
    finally:
        os.close(file)
    return start


def _read(paths: tuple[Path, ...], location: Location) -> bytes:
    *others, last = paths
    for path in others:
        if path.exists():
            last = path
            break
    with last.open("rb") as file:
        file.seek(location.start)
        return file.read(location.length)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _file_name(table: str) -> str:
    name = quote(table, safe="")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 20]}-{hashlib.sha256(table.encode()).hexdigest()[:16]}"


def _not_written(folder: Path, error: OSError) -> ArchiveError:
    if error.errno in _FULL:
        mend = "free some space there"
    elif error.errno in _FORBIDDEN:
        mend = "let the account that runs the service write there"
    else:
        mend = "see to it that it is a folder that the service can write to"
    return ArchiveError(
        f"The archive in {folder} cannot be written ({error.strerror}), and what is not archived is not"
        f" deleted: {mend}, or choose another folder (WATCHKEEPER_ARCHIVE_DIR)."
    )

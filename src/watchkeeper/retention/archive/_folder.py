"""An archive in a local folder."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

from watchkeeper.exceptions import ArchiveError
from watchkeeper.retention.archive._archive import Location

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_FILE: Final = 256 << 20
"""A segment that would make its file larger than this begins another one."""

_LONGEST_NAME: Final = 200
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class FolderArchive:
    """An archive in a local folder: files `<table>/<run>-0001.jsonl.gz`, whose gzip members are the segments.

    Args:
        folder: Created on the first write, readable by its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = ("", 0, 1)  # table, run and part of the file that was written last

    async def write(self, table: str, run: int, data: bytes) -> Location:
        """Append a segment to the run's file, and sync it to the disk."""
        try:
            return await asyncio.to_thread(self._write, table, run, data)
        except OSError as error:
            raise _write_error(self._folder, error) from error

    async def read(self, location: Location) -> bytes:
        """Return a segment's bytes, from where it was written or from a copy of that file in the folder."""
        url = urlsplit(location.place)
        machine = url.hostname or "this machine"
        if url.scheme != "file":
            raise ArchiveError(
                f"{location.place} is not in a folder: use the archive that the service wrote it with."
            )
        original = Path(os.fsdecode(unquote_to_bytes(url.path)))
        copy = self._folder / original.parent.name / original.name
        try:
            data = await asyncio.to_thread(_read_first, (original, copy), location)
        except FileNotFoundError as error:
            raise ArchiveError(
                f"The file {original} of {machine} is missing: run this command there, or copy the file to"
                f" {copy}."
            ) from error
        except OSError as error:
            raise ArchiveError(
                f"The file {original} cannot be read ({error.strerror}): give the account that runs this"
                " command access to it."
            ) from error
        if len(data) < location.length:
            raise ArchiveError(
                f"The file {original} of {machine} ends before byte {location.start + location.length}:"
                f" copy the complete file to {copy}."
            )
        return data

    def _write(self, table: str, run: int, data: bytes) -> Location:
        folder = self._folder / _file_name(table)
        self._create(folder)
        part = self._last[2] if self._last[:2] == (table, run) else 1
        while True:
            path = folder / f"{run}-{part:04}.jsonl.gz"
            start = _append(path, data)
            if start is not None:
                self._last = (table, run, part)
                place = f"file://{socket.gethostname()}{quote(os.fsencode(path.absolute()))}"
                return Location(place=place, start=start, length=len(data))
            part += 1

    def _create(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700 if path.is_relative_to(self._folder) else 0o777, exist_ok=True)
            _sync_folder(path.parent)


def _append(path: Path, data: bytes) -> int | None:
    """Append to a file and return the offset; None if the file is large enough already."""
    # Opened by name each time: data written to a file that has been removed would be lost.
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
                os.ftruncate(file, start)  # the file stays valid gzip
                if not start:
                    path.unlink()
            raise
    finally:
        os.close(file)
    return start


def _read_first(paths: Sequence[Path], location: Location) -> bytes:
    """Read from the first of the paths that exists."""
    path = next((path for path in paths if path.exists()), paths[-1])
    with path.open("rb") as file:
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


def _write_error(folder: Path, error: OSError) -> ArchiveError:
    if error.errno in _FULL:
        fix = "free some space there"
    elif error.errno in _FORBIDDEN:
        fix = "give the service's account write access"
    else:
        fix = "make it a folder that the service can write to"
    return ArchiveError(
        f"The archive in {folder} cannot be written ({error.strerror}), and rows that are not archived are"
        f" not deleted: {fix}, or choose another folder (WATCHKEEPER_ARCHIVE_DIR)."
    )

"""What PostgreSQL's last words mean, and what mends it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from watchkeeper.database.embedded._paths import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from watchkeeper.database.embedded._paths import Paths

_OTHER_VERSION: Final = re.compile(
    r"initialized by PostgreSQL version (\S+), which is not compatible with this version (\S+?)\.?(?:\s|$)"
)
_IMPORTANT: Final = re.compile(r"FATAL|PANIC|[Ee]rror|could not")
_STAGES: Final = {
    "initdb": "could not make its data",
    "provision": "could not make the service's roles and database",
    "supervisor": "lost the process that runs it",
}

# The first that matches wins, so causes stand before what follows from them.
_MEANINGS: Final = (
    (
        r"could not \w+ shared memory segment.*No space left|could not create semaphores",
        "There is too little shared memory for PostgreSQL: enlarge /dev/shm (docker run --shm-size=128m).",
    ),
    (
        r"could not map anonymous shared memory|Cannot allocate memory|out of memory",
        (
            "There is too little memory for PostgreSQL: free some, or lower shared_buffers in"
            " {paths.data}/postgresql.conf."
        ),
    ),
    (
        r"No space left on device|Disk quota exceeded|\[Errno 28\]",
        (
            "The disk that holds {paths.state} is full: free some space there. A server that runs then goes"
            " on by itself, else start again."
        ),
    ),
    (
        r"Read-only file system",
        "The disk that holds {paths.state} is read-only: mount it writable, and look for the reason.",
    ),
    (
        r'"postmaster.pid" already exists|pre-existing shared memory block|\.lock" already exists',
        (
            "Another PostgreSQL still runs over {paths.data}: stop it (the first line of postmaster.pid"
            " there is its process number), then start again."
        ),
    ),
    (
        r"has wrong ownership|has invalid permissions|[Ww]rong owner",
        (
            "The folder {paths.data} has to belong to the account that runs PostgreSQL and be closed to"
            " others: set it back with chown -R and chmod 0700."
        ),
    ),
    (
        r"invalid locale|could not find suitable encoding|locale .* not found",
        (
            "This PostgreSQL finds no locale C.UTF-8 on this system: install it, or take PostgreSQL 17 or"
            " newer, which brings its own."
        ),
    ),
    (
        (
            r"could not locate a valid checkpoint record|invalid checkpoint record|incorrect checksum in"
            r" control file|could not (?:read|open) file .*(?:pg_control|PG_VERSION)|is not a valid data"
            r" directory"
        ),
        (
            "The data in {paths.data} is damaged: move it away and restore the last backup. {paths.log}"
            " says what is wrong with it."
        ),
    ),
    (
        (
            r"unrecognized configuration parameter|invalid value for parameter|is outside the valid range|"
            r"configuration file .* contains errors|requires a .* value"
        ),
        (
            "PostgreSQL refuses a setting ({line}): correct it in {paths.data}/postgresql.conf, in"
            " postgresql.auto.conf there, or in the `parameters` that were handed in."
        ),
    ),
    (
        r"error while loading shared libraries",
        "A library that PostgreSQL needs is missing ({line}): install it, or take other binaries.",
    ),
    (
        r"Permission denied|Operation not permitted",
        (
            "PostgreSQL or its supervisor lacks a right ({line}): give {paths.state} back to the account"
            " that ran it; in a container, let root have the capabilities"
            " {capabilities}, or do not run as root."
        ),
    ),
)


def explain(event: Mapping[str, Any], paths: Paths) -> str:
    """Return one or two sentences: why the server is not there, and what mends it.

    Args:
        event: A `failed`, `down` or `full` event of the supervisor, with its `log`.
        paths: The server's folders.
    """
    stage, lines = event.get("stage"), [str(line).strip() for line in event["log"]]
    if stage == "foreign data":
        return (
            f"The folder {paths.data} holds files that are no PostgreSQL data: move them away, or choose"
            " another state folder (WATCHKEEPER_STATE_DIR)."
        )
    if found := _OTHER_VERSION.search("\n".join(lines)):
        return _upgrade_steps(found[1], found[2], paths)
    for pattern, sentence in _MEANINGS:
        for line in lines:
            if re.search(pattern, line):
                said = _strip_prefix(line)
                return sentence.format(paths=paths, line=said, capabilities=CAPABILITIES)
    what = _STAGES.get(str(stage), f"ended by itself (exit status {event.get('code')})")
    return f"The embedded PostgreSQL {what}: {_last_line(lines)}. See {paths.log}."


def _upgrade_steps(old: str, new: str, paths: Paths) -> str:
    return (
        f"The data in {paths.data} was made by PostgreSQL {old}, which {new} cannot read: with the programs"
        f" of {old}, start it and save it with pg_dumpall; then move the folder away, start this again, and"
        " restore with psql."
    )


def _last_line(lines: list[str]) -> str:
    telling = [line for line in lines if _IMPORTANT.search(line)]
    return _strip_prefix((telling or lines or ["it said nothing"])[-1])


def _strip_prefix(line: str) -> str:
    """Return a line of the log without time and severity."""
    return re.sub(r"^.*?\b(?:FATAL|PANIC|ERROR|error): +", "", line).rstrip(".")

"""Explains why the server failed, from its last log lines, and how to fix it."""

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
    "initdb": "could not create its data",
    "provision": "could not create the service's roles and database",
    "supervisor": "lost the process that runs it",
}

# The first match wins, so causes come before their consequences.
_MEANINGS: Final = {
    r"could not \w+ shared memory segment.*No space left|could not create semaphores": (
        "There is too little shared memory for PostgreSQL: enlarge /dev/shm (docker run --shm-size=128m)."
    ),
    r"could not map anonymous shared memory|Cannot allocate memory|out of memory": (
        "There is too little memory for PostgreSQL: free some, or lower shared_buffers in"
        " {paths.data}/postgresql.conf."
    ),
    r"No space left on device|Disk quota exceeded|\[Errno 28\]": (
        "The disk that holds {paths.state} is full: free some space. A running server then continues by"
        " itself; otherwise start again."
    ),
    r"Read-only file system": (
        "The disk that holds {paths.state} is read-only: find out why, and mount it writable."
    ),
    r'"postmaster.pid" already exists|pre-existing shared memory block|\.lock" already exists': (
        "Another PostgreSQL still uses {paths.data}: stop it (the first line of postmaster.pid there is its"
        " process id), then start again."
    ),
    r"has wrong ownership|has invalid permissions|[Ww]rong owner": (
        "The folder {paths.data} must belong to the account that runs PostgreSQL, with mode 0700: restore"
        " that with chown -R and chmod."
    ),
    r"invalid locale|could not find suitable encoding|locale .* not found": (
        "This system has no locale C.UTF-8: install it, or use PostgreSQL 17 or newer, which has its own."
    ),
    (
        r"could not locate a valid checkpoint record|invalid checkpoint record|incorrect checksum in "
        r"control file|could not (?:read|open) file .*(?:pg_control|PG_VERSION)|is not a valid data "
        r"directory"
    ): (
        "The data in {paths.data} is damaged: move it away and restore the last backup. See {paths.log} for"
        " the details."
    ),
    (
        r"unrecognized configuration parameter|invalid value for parameter|is outside the valid range|"
        r"configuration file .* contains errors|requires a .* value"
    ): (
        "PostgreSQL refuses a setting ({line}): correct it in {paths.data}/postgresql.conf, in"
        " postgresql.auto.conf there, or in the `parameters` argument."
    ),
    r"error while loading shared libraries": (
        "A library that PostgreSQL needs is missing ({line}): install it, or use other programs."
    ),
    r"Permission denied|Operation not permitted": (
        "PostgreSQL or its supervisor lacks a permission ({line}): return {paths.state} to the account that"
        " ran it; in a container, give root the capabilities {capabilities}, or do not run as root."
    ),
}


def explain(event: Mapping[str, Any], paths: Paths) -> str:
    """Return the reason and the fix for a `failed`, `down` or `full` event of the supervisor."""
    stage, lines = event.get("stage"), [str(line).strip() for line in event["log"]]
    if stage == "foreign data":
        return (
            f"The folder {paths.data} contains files that are not PostgreSQL data: move them away, or choose"
            " another state folder (WATCHKEEPER_STATE_DIR)."
        )
    if found := _OTHER_VERSION.search("\n".join(lines)):
        return _upgrade_steps(found[1], found[2], paths)
    for pattern, sentence in _MEANINGS.items():
        for line in lines:
            if re.search(pattern, line):
                said = _strip_prefix(line)
                return sentence.format(paths=paths, line=said, capabilities=CAPABILITIES)
    what = _STAGES.get(str(stage), f"exited unexpectedly (status {event.get('code')})")
    return f"The embedded PostgreSQL {what}: {_last_line(lines)}. See {paths.log}."


def _upgrade_steps(old: str, new: str, paths: Paths) -> str:
    return (
        f"The data in {paths.data} was created by PostgreSQL {old}, which {new} cannot read: start it with"
        f" the programs of {old} and save it with pg_dumpall; then move the folder away, start again, and"
        " restore with psql."
    )


def _last_line(lines: list[str]) -> str:
    important = [line for line in lines if _IMPORTANT.search(line)]
    return _strip_prefix((important or lines or ["no output"])[-1])


def _strip_prefix(line: str) -> str:
    """Return a log line without time and severity."""
    return re.sub(r"^.*?\b(?:FATAL|PANIC|ERROR|error): +", "", line).rstrip(".")

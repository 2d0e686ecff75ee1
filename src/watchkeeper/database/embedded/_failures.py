"""What PostgreSQL's last words mean, and what mends it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from watchkeeper.database.embedded._places import Places

_VERSION: Final = re.compile(
    r"initialized by PostgreSQL version (\S+?),.*not compatible with this version (\S+?)\.?(?: |$)"
)


def explain(event: Mapping[str, Any], places: Places) -> str:
    """Return one or two sentences: why the server is not there, and what mends it.

    Args:
        event: A `failed`, `down` or `full` event of the supervisor.
        places: The server's folders.
    """
    lines = [str(line) for line in event.get("log", ())]
    text = "\n".join(lines)
    if event.get("stage") == "foreign data":
        return (
            f"The folder {places.data} holds files that are no PostgreSQL data: move them away, or choose another"
            " state folder (WATCHKEEPER_STATE_DIR)."
        )
    for pattern, sentence in _MEANINGS:
        if re.search(pattern, text):
            return sentence(text, places)
    last = next((line for line in reversed(lines) if re.search(r"FATAL|PANIC|[Ee]rror", line)), "")
    last = last or (lines[-1] if lines else "it said nothing")
    what = "could not make its data folder" if event.get("stage") == "initdb" else "ended by itself"
    return (
        f"The embedded PostgreSQL {what} (exit status {event.get('code')}): {last.strip()}. See {places.log}."
    )


def _fixed(sentence: str) -> Callable[[str, Places], str]:
    return lambda _text, places: sentence.format(places=places)


def _other_version(text: str, places: Places) -> str:
    found = _VERSION.search(text)
    old, new = (found[1], found[2]) if found else ("another version", "this one")
    return (
        f"The data in {places.data} was made by PostgreSQL {old}, and this is PostgreSQL {new}, which cannot read"
        f" it: dump it with the programs of {old} (pg_dumpall), move the folder away, start again, and restore"
        " the dump with psql."
    )


# The first that matches wins: the causes stand before their consequences.
_MEANINGS: Final = (
    (_VERSION.pattern, _other_version),
    (
        r"could not (?:resize|create|open) shared memory segment.*No space left|could not create semaphores",
        _fixed(
            "There is too little shared memory for PostgreSQL: enlarge /dev/shm (in a container --shm-size=128m)."
        ),
    ),
    (
        r"could not map anonymous shared memory|Cannot allocate memory|out of memory",
        _fixed(
            "There is too little memory for PostgreSQL: free some, or lower shared_buffers in"
            " {places.data}/postgresql.conf."
        ),
    ),
    (
        r"No space left on device|Disk quota exceeded",
        _fixed(
            "The disk that holds {places.state} is full: free some space there. The embedded PostgreSQL goes on"
            " by itself then, or at the next start."
        ),
    ),
    (
        r"Read-only file system",
        _fixed("The disk that holds {places.state} is read-only: mount it writable, and look why it is not."),
    ),
    (
        r'"postmaster.pid" already exists|pre-existing shared memory block|\.lock" already exists',
        _fixed(
            "Another PostgreSQL still runs over {places.data}: stop it (its number is the first line of"
            " postmaster.pid there), then start again."
        ),
    ),
    (
        r"has wrong ownership|has invalid permissions",
        _fixed(
            "The folder {places.data} must belong to the account that runs PostgreSQL and be closed to others:"
            " set it back with chown -R and chmod 0700."
        ),
    ),
    (
        r"invalid locale|could not find suitable encoding|failed to restore old locale",
        _fixed(
            "This PostgreSQL finds no locale C.UTF-8 on this system: install it (Debian: locales), or use"
            " PostgreSQL 17 or newer, which brings its own."
        ),
    ),
    (
        r"could not locate a valid checkpoint record|invalid checkpoint record|invalid data in file|"
        r"incorrect checksum in control file|could not read.*pg_control|could not open file .*pg_control",
        _fixed(
            "The data in {places.data} is damaged: move it away and restore the last backup; {places.log} says"
            " what is wrong with it."
        ),
    ),
    (
        r"unrecognized configuration parameter|invalid value for parameter|configuration file .* contains errors",
        _fixed(
            "PostgreSQL refuses one of its settings: correct postgresql.conf or postgresql.auto.conf in"
            " {places.data}, or the `parameters` handed in; {places.log} names it."
        ),
    ),
    (
        r"error while loading shared libraries",
        _fixed("A library that PostgreSQL needs is missing on this system; {places.log} names it."),
    ),
    (
        r"Permission denied|Operation not permitted",
        _fixed(
            "PostgreSQL may not use a file below {places.state}: give the folder back to the account that runs"
            " it; {places.log} names the file."
        ),
    ),
)

"""What the supervisor runs, and how the server is configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from watchkeeper.database.embedded._paths import PORT, SUPERUSER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from watchkeeper.database.embedded._account import Account
    from watchkeeper.database.embedded._binaries import Binaries
    from watchkeeper.database.embedded._paths import Paths

_BUILTIN_LOCALE_SINCE: Final = 17
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
# Longer than `serve` takes to drain by default.
_TERM_GRACE_S: Final = 25.0
# After each checkpoint the first change of a page writes the whole page to the WAL. With a smaller
# max_wal_size a large delete causes several checkpoints and takes up to 1.5 times as long. Later checkpoints
# free the space.
_CONFIGURATION: Final = """
# Watchkeeper wrote this when it created the data: change it here, or with ALTER SYSTEM.
max_connections = 100
shared_buffers = 64MB
min_wal_size = 32MB
max_wal_size = 2GB
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] '
log_checkpoints = off
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSpec:
    """What the supervisor runs, as JSON on its stdin."""

    state: str
    data: str
    log: str
    initdb: Sequence[str]  # without the folder
    postgres: Sequence[str]
    configuration: str  # appended to postgresql.conf when the data is created
    env: Mapping[str, str]
    uid: int  # 0 for the supervisor's own
    gid: int
    term_grace: float  # seconds that the parent may take to stop after the supervisor gets SIGTERM
    stop_timeout: float


def make_spec(
    paths: Paths, account: Account, binaries: Binaries, parameters: Mapping[str, str], stop_timeout: timedelta
) -> ServerSpec:
    """Return the spec of a server; `parameters` override all other settings of PostgreSQL."""
    return ServerSpec(
        state=str(paths.state),
        data=str(paths.data),
        log=str(paths.log),
        initdb=_initdb(binaries, durable=parameters.get("fsync") != "off"),
        postgres=_postgres(binaries, paths, parameters),
        configuration=_CONFIGURATION,
        env=_ENVIRONMENT,
        uid=account.uid if account.is_other else 0,
        gid=account.gid if account.is_other else 0,
        term_grace=_TERM_GRACE_S,
        stop_timeout=stop_timeout.total_seconds(),
    )


def _initdb(binaries: Binaries, *, durable: bool) -> list[str]:
    argv = [
        str(binaries.folder / "initdb"),
        f"--username={SUPERUSER}",
        "--encoding=UTF8",
        "--data-checksums",
        "--auth-local=trust",  # the folder of the sockets is private
        "--auth-host=scram-sha-256",  # no role has a password, so TCP stays closed even if it is enabled
        "--no-instructions",
    ]
    if binaries.major >= _BUILTIN_LOCALE_SINCE:
        # PostgreSQL's own locale is the same on every system; the C library's order changes with its version.
        argv += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    else:
        argv += ["--locale=C.UTF-8"]
    if not durable:
        argv += ["--no-sync", "--wal-segsize=1"]
    return argv


def _postgres(binaries: Binaries, paths: Paths, parameters: Mapping[str, str]) -> list[str]:
    settings = {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": _quoted(str(paths.sockets)),
        "unix_socket_permissions": "0700",
        "lc_messages": "C",  # the messages are parsed
        "log_destination": "stderr",
        "logging_collector": "off",
        **parameters,
    }
    argv = [str(binaries.folder / "postgres"), "-D", str(paths.data)]
    for name, value in settings.items():
        argv += ["-c", f"{name}={value}"]
    return argv


def _quoted(path: str) -> str:
    """Quote an element of a list setting, such as a folder whose name contains a comma."""
    return '"' + path.replace('"', '""') + '"'

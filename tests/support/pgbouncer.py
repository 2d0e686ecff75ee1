"""A real PgBouncer in transaction mode in front of a server."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from support.postgres import OWNER, SERVICE, DatabaseUrls, PostgresServer
from support.tools import require_tool

_CONFIG: Final = """
[databases]
* = host={server}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 2
"""


def _start(folder: Path, server: PostgresServer) -> subprocess.Popen[bytes]:
    config = folder / "pgbouncer.ini"
    config.write_text(_CONFIG.format(server=server.folder, folder=folder))
    (folder / "users").write_text("".join(f'"{role}" ""\n' for role in (OWNER, SERVICE)))
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")  # PgBouncer refuses to run as root
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [require_tool("pgbouncer"), config], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **identity
        )


@contextmanager
def running_bouncer(server: PostgresServer) -> Iterator[Path]:
    """Run a PgBouncer with two server connections per role and database; yields its socket folder."""
    folder = Path(tempfile.mkdtemp(prefix="wk-pb-"))
    process = _start(folder, server)
    try:
        deadline = time.monotonic() + 60
        while not (folder / ".s.PGSQL.6432").exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield folder
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def through(bouncer: Path, urls: DatabaseUrls) -> DatabaseUrls:
    """Return the URLs of a database through the PgBouncer with this socket folder."""
    tail = f"{urls.name}?host={bouncer}&port=6432"
    return replace(urls, url=f"postgresql://{SERVICE}@/{tail}", owner_url=f"postgresql://{OWNER}@/{tail}")

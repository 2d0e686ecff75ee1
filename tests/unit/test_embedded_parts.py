import errno
import os
import pwd
import re
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from watchkeeper.database.embedded._account import Account, choose_account, closed_folder
from watchkeeper.database.embedded._binaries import Binaries
from watchkeeper.database.embedded._failures import explain
from watchkeeper.database.embedded._paths import Paths, folder_error
from watchkeeper.database.embedded._provision import Names
from watchkeeper.database.embedded._server import EmbeddedServer
from watchkeeper.database.embedded._spec import make_spec
from watchkeeper.database.embedded._supervisor._parent import StoppedError, read_spec
from watchkeeper.database.embedded._supervisor._predecessor import is_ready, is_server, recorded_pid
from watchkeeper.database.embedded._supervisor._server_log import ServerLog
from watchkeeper.exceptions import ConfigurationError, EmbeddedServerError

PATHS = Paths(state=Path("/srv/state"))
ME = Account(name="me", uid=os.geteuid(), gid=os.getegid(), is_other=False)
NOBODY = Account(name="nobody", uid=65534, gid=65534, is_other=True)


def test_embedded_log_is_bounded(tmp_path: Path) -> None:
    """The log file is renamed when it exceeds its limit, and only one such file is kept."""
    server_log = ServerLog(tmp_path / "log", limit_bytes=100)
    for number in range(100):
        server_log.write(f"line {number:03}\n".encode())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 100 + len("line 000\n")
    assert (tmp_path / "log").read_text().endswith("line 099\n")


def test_embedded_log_is_appended_to(tmp_path: Path) -> None:
    """A later supervisor appends to the log, which only its account may read."""
    for text in (b"one\n", b"two\n"):
        ServerLog(tmp_path / "log").write(text)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_embedded_log_keeps_the_last_lines_in_memory(tmp_path: Path) -> None:
    """Where writing fails, the last 40 lines remain in memory, each of limited length."""
    server_log = ServerLog(tmp_path / "missing" / "log")
    server_log.write(b"from an earlier program\n")
    server_log.begin()
    server_log.write(b"".join(b"line %d\n" % number for number in range(50)) + b"hal")
    server_log.write(b"f\n" + b"\xff" + b"x" * 5000 + b"\nunfinished")
    assert len(server_log.tail) == 40
    assert server_log.tail[-2] == "half"
    assert server_log.tail[-1] == "\ufffd" + "x" * 1999


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "FATAL:  could not resize shared memory segment: No space left on device",
            r"too little shared memory .*/dev/shm",
        ),
        ("FATAL:  could not map anonymous shared memory: Cannot allocate memory", r"too little memory"),
        ("PANIC:  could not write to file: No space left on device", r"disk that holds /srv/state is full"),
        ("[Errno 28] Kein Speicherplatz: '/srv/state/data'", r"disk that holds /srv/state is full"),
        ("FATAL:  could not open file: Read-only file system", r"is read-only: find out why"),
        ('FATAL:  lock file "postmaster.pid" already exists', r"Another PostgreSQL still uses"),
        (
            "FATAL:  pre-existing shared memory block (key 1) is still in use",
            r"Another PostgreSQL still uses",
        ),
        ('FATAL:  data directory "/x" has wrong ownership', r"must belong to the account that runs"),
        ('initdb: error: invalid locale name "C.UTF-8"', r"has no locale C\.UTF-8"),
        ("PANIC:  could not locate a valid checkpoint record", r"is damaged: move it away"),
        ('FATAL:  unrecognized configuration parameter "x"', r'a setting \(unrecognized .* parameter "x"\)'),
        (
            "postgres: error while loading shared libraries: libx.so.1",
            r"missing \(.* libx\.so\.1\): install it",
        ),
        ("[Errno 1] Operation not permitted: '/x/initdb'", r"lacks a permission \(\[Errno 1\] .*SETUID"),
        ("FATAL:  the stars are wrong.", r"exited unexpectedly \(status 1\): the stars are wrong\. See /srv"),
    ],
)
def test_embedded_log_lines_are_explained(line: str, sentence: str) -> None:
    """A cause that an operator can fix is explained with the fix; others by PostgreSQL's own message."""
    event = {"event": "failed", "stage": "postgres", "code": 1, "log": ["LOG:  starting", line, "LOG:  end"]}
    said = explain(event, PATHS)
    assert re.search(sentence, said)
    assert "\n" not in said


def test_embedded_exit_without_output_is_reported() -> None:
    """The message has the exit status and the path of the log."""
    event = {"event": "failed", "stage": "initdb", "code": 1, "log": []}
    expected = "The embedded PostgreSQL could not create its data: no output. See /srv/state/postgres.log."
    assert explain(event, PATHS) == expected


def test_embedded_data_of_another_version_is_explained() -> None:
    """The message names both versions and the upgrade by a dump."""
    log = [
        "FATAL:  database files are incompatible with server",
        (
            "DETAIL:  The data directory was initialized by PostgreSQL version 17, which is not compatible"
            " with this version 18.6 (Debian 18.6-1)."
        ),
    ]
    said = explain({"stage": "postgres", "log": log}, PATHS)
    assert "created by PostgreSQL 17, which 18.6 cannot read" in said
    assert "start it with the programs of 17 and save it with pg_dumpall" in said


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "The disk that holds /srv/state is full"),
        (errno.EDQUOT, "The disk that holds /srv/state is full"),
        (errno.EROFS, r"cannot be written \(/srv: .*\): give this account permission"),
        (errno.EPERM, r"lacks a permission \(/srv: |cannot be written \(/srv: "),
        (errno.ENOTDIR, r"because a file is in the way \(/srv\): "),
        (errno.ELOOP, r"cannot be used \(/srv: "),
    ],
)
def test_embedded_folder_errors_name_the_folder(number: int, sentence: str) -> None:
    """Each file system error becomes a message with the folder."""
    assert re.search(sentence, str(folder_error(PATHS.state, OSError(number, os.strerror(number), "/srv"))))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a" * 58, "has more than 63 bytes"),
        ("postgres", "The name 'postgres' is reserved"),
        ("pg_mine", "The name 'pg_mine' is reserved"),
    ],
)
def test_embedded_names_are_checked(name: str, sentence: str) -> None:
    """A name that PostgreSQL would refuse is refused."""
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        EmbeddedServer(Path(), name=name, report=print)


def test_embedded_url_quotes_names() -> None:
    """Folders and roles with separators in their names are quoted in the URL."""
    names = Names(service="a/b")
    expected = "postgresql://o%40p@/a%2Fb?host=%2Fx%2C%26y%2Frun&port=5432"
    assert names.url(Path("/x,&y/run"), "o@p") == expected


def test_embedded_folders_of_an_ordinary_user_are_private(tmp_path: Path) -> None:
    """State and sockets are closed to all others, and parent folders are created."""
    paths = Paths(state=tmp_path / "a" / "state")
    for _ in range(2):
        paths.prepare(ME)
    for folder in (paths.state, paths.sockets):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    paths.sockets.chmod(0o750)
    with pytest.raises(EmbeddedServerError, match=r"run, is not a private folder of me: remove it"):
        paths.prepare(ME)


def test_embedded_sockets_have_a_usable_path() -> None:
    """A path that is too long for a socket, or that libpq would split, is replaced by a short one."""
    assert Paths(state=Path("/srv")).sockets == Path("/srv/run")
    assert Paths(state=Path("/") / ("s" * 88)).sockets.parent == Path("/") / ("s" * 88)
    short = {Paths(state=Path(state)).sockets for state in ("/" + "s" * 89, "/a,b", "/a,c")}
    assert len(short) == 3
    assert {len(str(folder)) for folder in short} == {len("/tmp/watchkeeper-") + 16}  # noqa: S108 - a length


def test_embedded_closed_folder_is_found(tmp_path: Path) -> None:
    """The first folder that an account may not enter is returned."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    stranger = Account(name="stranger", uid=54321, gid=54321, is_other=True)
    tmp_path.chmod(0o755)
    start = len(tmp_path.parents)
    (tmp_path / "outer").chmod(0o755)
    inner.chmod(0o700)
    found = closed_folder(inner, stranger)
    assert found is not None
    assert found == inner or len(found.parents) < start
    assert closed_folder(inner, ME) is None
    inner.chmod(0o070)
    mine = Account(name="group", uid=54321, gid=inner.stat().st_gid, is_other=True)
    assert closed_folder(inner, mine) != inner


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to run as root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def _pretend_owner(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    real: Callable[..., os.stat_result] = Path.stat

    def stat_of(path: Path, **kwargs: Any) -> os.stat_result:
        values = list(real(path, **kwargs))
        values[stat.ST_UID] = uid
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", stat_of)


@pytest.mark.usefixtures("as_root")
def test_embedded_root_uses_an_unprivileged_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates are tried in order; where none exists, the error says how to create one."""
    known = {"daemon": 1, "postgres": 0}

    def getpwnam(name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", known[name], 7, "", "/", "/bin/false"))

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    assert choose_account(tmp_path / "data") == Account(name="daemon", uid=1, gid=7, is_other=True)
    del known["daemon"]
    with pytest.raises(
        EmbeddedServerError, match=r"none of the accounts nobody, daemon, postgres exists: create"
    ):
        choose_account(tmp_path / "data")


@pytest.mark.usefixtures("as_root")
def test_embedded_root_uses_the_owner_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that belongs to root, or to no account, is refused."""
    daemon = pwd.getpwuid(1)
    _pretend_owner(monkeypatch, 1)
    assert choose_account(tmp_path) == Account(name=daemon.pw_name, uid=1, gid=daemon.pw_gid, is_other=True)
    _pretend_owner(monkeypatch, 0)
    with pytest.raises(EmbeddedServerError, match=rf"belongs to root, .*chown -R \w+: {tmp_path}"):
        choose_account(tmp_path)
    _pretend_owner(monkeypatch, 54321)
    with pytest.raises(EmbeddedServerError, match=r"belongs to user number 54321, which does not exist"):
        choose_account(tmp_path)


def test_embedded_ordinary_user_runs_only_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of another user is refused with both names."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    account = choose_account(tmp_path / "data")
    assert (account.name, account.uid, account.is_other) == ("user number 54321", 54321, False)
    _pretend_owner(monkeypatch, 1)
    with pytest.raises(EmbeddedServerError, match=r"belongs to daemon, and this process runs as user number"):
        choose_account(tmp_path)


def test_embedded_spec_listens_only_on_private_sockets() -> None:
    """There is no TCP, the locale fits the version, and the caller's settings come last."""
    binaries = Binaries(folder=Path("/bin"), major=18)
    parameters = {"port": "1", "work_mem": "8MB"}
    timeout = timedelta(seconds=3)
    spec = make_spec(Paths(state=Path('/x "y"')), NOBODY, binaries, parameters, timeout)
    assert "listen_addresses=" in spec.postgres
    assert 'unix_socket_directories="/x ""y""/run"' in spec.postgres
    assert "port=1" in spec.postgres
    assert spec.postgres[-1] == "work_mem=8MB"
    assert "--builtin-locale=C.UTF-8" in spec.initdb
    assert (spec.uid, spec.gid) == (NOBODY.uid, NOBODY.gid)
    assert spec.stop_timeout == 3
    assert make_spec(PATHS, ME, binaries, {}, timeout).uid == 0


def test_embedded_supervisor_without_a_spec_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that ends before it has sent the spec is no error; the spec may arrive in pieces."""
    pieces = [b'{"lock', b'_fd": 3}\n', b""]
    monkeypatch.setattr(os, "read", lambda _fd, _size: pieces.pop(0))
    assert read_spec() == {"lock_fd": 3}
    with pytest.raises(StoppedError):
        read_spec()


def test_embedded_pid_file_is_read_as_pg_ctl_does(tmp_path: Path) -> None:
    """Only a line `ready` of the same server counts."""
    assert recorded_pid(tmp_path) is None
    lines = ["12", "/data", "0", "5432", "/run", "", " 1 2", "starting"]
    for pid, state, ready in ((12, "starting", False), (12, "ready   ", True), (13, "ready   ", False)):
        (tmp_path / "postmaster.pid").write_text("\n".join([*lines[:-1], state]))
        assert is_ready(tmp_path, pid) == ready
    assert recorded_pid(tmp_path) == 12
    (tmp_path / "postmaster.pid").write_text("")
    assert recorded_pid(tmp_path) is None


def test_embedded_other_processes_are_not_servers(tmp_path: Path) -> None:
    """Neither this process nor one that does not exist is taken for a server."""
    assert not is_server(os.getpid(), tmp_path)
    assert not is_server(2**30, tmp_path)

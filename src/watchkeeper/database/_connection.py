"""A psycopg connection that never waits for ever, and what of its errors means "come again later"."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from psycopg import AsyncConnection, IsolationLevel, waiting
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn
from psycopg.rows import TupleRow

from watchkeeper.exceptions import ConfigurationError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg.abc import RV, PQGen

# How long a server may take to note a cancel request. psycopg's own 5 s, and 5 s more for the statement to
# end, is what a cancelled request would hang on a stopped server.
_CANCEL_TIMEOUT: Final = 0.5
_PING_TIMEOUT: Final = 1.0
_POLL: Final = 0.1  # psycopg's own: how often a wait looks whether the socket is still there

# The connection string's own values win over these. There is no `options`: PgBouncer refuses it.
_DEFAULT_PARAMETERS: Final = {
    "connect_timeout": "2",  # the least that libpq knows
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "fallback_application_name": "watchkeeper",
}

# What libpq reads only once it speaks to a server over TCP, and psycopg when it connects.
_NUMBERS: Final = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
_PORTS: Final = range(1, 1 << 16)
_NOWHERE: Final = "/dev/null"  # no folder, so no server's socket is in it

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNAVAILABLE_STATES: Final = frozenset(
    {
        "53300",  # too_many_connections
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "57P05",  # idle_session_timeout
    }
)


class NoAnswerError(psycopg.OperationalError):
    """The server took longer over one statement than this connection waits."""


class Connection(AsyncConnection[TupleRow]):
    """A connection with a limit on the wait for each answer, kept by the client.

    It is not `statement_timeout`: a stopped server would not keep that one, and behind PgBouncer there is no
    session to set it in. A statement that is over the limit, or whose task is cancelled, is cancelled on the
    server and the connection closed: nobody can say what state it is in.
    """

    answer_timeout: float | None = None

    @classmethod
    async def connect(  # type: ignore[override]  # only the pool and `Database` call it
        cls,
        conninfo: str = "",
        *,
        answer_timeout: float | None = None,
        report: Callable[[psycopg.Error | None], None] = lambda _error: None,
        **kwargs: Any,
    ) -> Self:
        """Connect to the server.

        Args:
            conninfo: What `connection_string` made.
            answer_timeout: Longest wait for the answer to one statement, in seconds; None for no limit.
            report: Called with the error of a failed attempt, with None after a good one.
            **kwargs: What psycopg takes.
        """
        try:
            conn = await super().connect(conninfo, **kwargs)
        except psycopg.Error as error:
            report(error)
            raise
        report(None)
        conn.answer_timeout = answer_timeout
        # Whatever the default is: a statement has to see what was committed while it waited for a lock.
        await conn.set_isolation_level(IsolationLevel.READ_COMMITTED)
        return conn

    async def wait(self, gen: PQGen[RV], interval: float = _POLL, timeout: float | None = None) -> RV:  # noqa: ASYNC109  # psycopg's
        """Run one exchange with the server within `answer_timeout`; psycopg calls this for each exchange."""
        limit = {} if timeout is None else {"timeout": timeout}  # psycopg 3.2 does not know it yet
        try:
            async with asyncio.timeout(self.answer_timeout):
                # Not psycopg's own `wait`: that one would hang up to 10 s when it is cancelled.
                return await waiting.wait_async(gen, self.pgconn.socket, interval, **limit)
        except asyncio.CancelledError:
            await self._abandon()
            raise
        except TimeoutError:
            await self._abandon()
            raise NoAnswerError(f"no answer within {self.answer_timeout:g} s") from None

    async def _abandon(self) -> None:
        """Tell the server to stop, if it listens, and close."""
        try:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(_CANCEL_TIMEOUT):
                    await self.cancel_safe()
        finally:
            self.pgconn.finish()

    async def is_alive(self) -> bool:
        """Say whether an idle connection still has its server, asking only where there is a doubt.

        A server that goes says so, or ends the stream: its socket turns readable, which an idle connection's
        socket otherwise is not. Looking costs a microsecond, where a question costs a round trip.
        """
        try:
            poll = select.poll()
            poll.register(self.pgconn.socket, select.POLLIN)
            if poll.poll(0):
                async with asyncio.timeout(_PING_TIMEOUT):
                    await self.execute("")
        except (psycopg.Error, TimeoutError):
            await self.close()
            return False
        return True


def connection_string(url: str, setting: str) -> str:
    """Return `url` with the library's defaults for what it leaves open.

    Args:
        url: A connection URI or libpq's `key=value` words.
        setting: What to call it in the error.

    Raises:
        ConfigurationError: It is not a connection string, or has a value that no server could make good.
    """
    try:
        given = conninfo_to_dict(url)
    except (psycopg.ProgrammingError, UnicodeEncodeError):
        # Without its cause: its text repeats the string, password and all.
        raise ConfigurationError(
            f"{setting} is no PostgreSQL connection string: it looks like postgresql://role:password@host:5432/database"
        ) from None
    unusable = _unusable_parameter(url, given)
    if unusable is not None:
        raise ConfigurationError(
            f"{setting} has a {unusable} that cannot be used, whatever the server: see"
            " https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"
        )
    return make_conninfo(
        url, **{key: value for key, value in _DEFAULT_PARAMETERS.items() if key not in given}
    )


def _unusable_parameter(url: str, given: dict[str, Any]) -> str | None:
    """Return the name of a parameter whose value keeps libpq from as much as trying to connect, or None."""
    ports = str(given.get("port", "")).split(",")
    hosts = given.get("hostaddr") or given.get("host")
    mismatch = hosts and len(ports) not in {1, len(str(hosts).split(","))}
    if mismatch or not all(_is_number(port, _PORTS) for port in ports):
        return "port"
    for name in _NUMBERS:
        if not _is_number(given.get(name, "")):
            return name
    # libpq looks at all the others before it connects: to nowhere, which it finds out without a wait.
    conn = PGconn.connect_start(make_conninfo(url, host=_NOWHERE, hostaddr="", port="5432").encode())
    told = conn.error_message.decode("utf-8", "replace")
    conn.finish()
    if _NOWHERE in told:
        return None
    return next((name for name in given if f"{name} " in told or f'"{name}"' in told), "parameter")


def _is_number(value: object, allowed: range = range(-(1 << 31), 1 << 31)) -> bool:
    # libpq takes white space around a number, and an empty one for its default.
    digits = str(value).strip()
    return not digits or (re.fullmatch("[+-]?[0-9]{1,10}", digits) is not None and int(digits) in allowed)


@contextlib.contextmanager
def translate_errors(conn: AsyncConnection | None) -> Iterator[None]:
    """Raise `DatabaseUnavailableError` instead of an error whose reason is the server, not the statement.

    Args:
        conn: The connection that is used inside the block, None while connecting.
    """
    try:
        yield
    except psycopg.Error as error:
        unavailable = _as_unavailable(error, conn)
        if unavailable is None:
            raise
        raise unavailable from error


def _as_unavailable(error: psycopg.Error, conn: AsyncConnection | None) -> DatabaseUnavailableError | None:
    if isinstance(error, NoAnswerError):
        return DatabaseUnavailableError(f"The database gave {error}: the statement was given up.")
    if conn is None:
        return DatabaseUnavailableError(f"The database cannot be reached: {one_line(error)}")
    state = error.sqlstate or ""
    # Class 08 is a broken connection: PgBouncer reports its own to the server like this.
    if conn.closed or state in _UNAVAILABLE_STATES or state.startswith("08"):
        return DatabaseUnavailableError(f"The connection to the database was lost: {one_line(error)}")
    return None


def one_line(error: BaseException) -> str:
    """Return the error's text without libpq's line breaks."""
    return " ".join(str(error).split())

"""A psycopg connection that bounds every wait, and the errors that mean the database is unavailable."""

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

# How long a server may take to accept a cancel request. psycopg waits 5 s, and 5 s more for the statement to
# end, which is how long a cancelled request would hang on a stopped server.
_CANCEL_TIMEOUT: Final = 0.5
_PING_TIMEOUT: Final = 1.0
_POLL: Final = 0.1  # psycopg's own: how often a wait checks that the socket is still open

# The connection string's own values win over these. There is no `options`: PgBouncer refuses it.
_DEFAULT_PARAMETERS: Final = {
    "connect_timeout": "2",  # libpq's minimum
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "fallback_application_name": "watchkeeper",
}

# Parameters that libpq validates only when it connects over TCP, and psycopg only when it connects.
_NUMBERS: Final = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
_PORTS: Final = range(1, 1 << 16)
_NOWHERE: Final = "/dev/null"  # not a folder, so it cannot contain a server's socket

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
    """The server did not respond to a statement in time."""


class Connection(AsyncConnection[TupleRow]):
    """A connection that waits at most `answer_timeout` seconds for each answer.

    The server's `statement_timeout` would not do: a stopped server does not enforce it. A statement that
    exceeds the limit, or is cancelled, is cancelled on the server, and the connection is closed.
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
        """Connect, and call `report` with the error of a failed attempt or None after a successful one."""
        try:
            conn = await super().connect(conninfo, **kwargs)
        except psycopg.Error as error:
            report(error)
            raise
        report(None)
        conn.answer_timeout = answer_timeout
        # Not the server's default: a statement must see what was committed while waiting for a lock.
        await conn.set_isolation_level(IsolationLevel.READ_COMMITTED)
        return conn

    async def wait(self, gen: PQGen[RV], interval: float = _POLL, timeout: float | None = None) -> RV:  # noqa: ASYNC109  # psycopg's
        """Run one exchange with the server within `answer_timeout`; psycopg calls this for each exchange."""
        limit = {} if timeout is None else {"timeout": timeout}  # not in psycopg 3.2
        try:
            async with asyncio.timeout(self.answer_timeout):
                # psycopg's own `wait` would hang for up to 10 s when it is cancelled.
                return await waiting.wait_async(gen, self.pgconn.socket, interval, **limit)
        except asyncio.CancelledError:
            await self._abandon()
            raise
        except TimeoutError:
            await self._abandon()
            raise NoAnswerError(f"no answer within {self.answer_timeout:g} s") from None

    async def _abandon(self) -> None:
        """Cancel the statement on the server, if it responds, and close the connection."""
        try:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(_CANCEL_TIMEOUT):
                    await self.cancel_safe()
        finally:
            self.pgconn.finish()

    async def is_alive(self) -> bool:
        """Return whether an idle connection still has its server.

        Its socket becomes readable only when the server stops. Polling it costs 1 µs, a query a round trip.
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
    """Return `url` with our defaults, or raise `ConfigurationError`; `setting` names it in errors."""
    try:
        given = conninfo_to_dict(url)
    except (psycopg.ProgrammingError, UnicodeEncodeError):
        # Without the cause, whose text repeats the string with its password.
        raise ConfigurationError(
            f"{setting} is not a PostgreSQL connection string, such as"
            " postgresql://role:password@host:5432/database"
        ) from None
    unusable = _unusable_parameter(url, given)
    if unusable is not None:
        raise ConfigurationError(
            f"{setting} has an invalid {unusable}: see"
            " https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"
        )
    return make_conninfo(
        url, **{key: value for key, value in _DEFAULT_PARAMETERS.items() if key not in given}
    )


def _unusable_parameter(url: str, given: dict[str, Any]) -> str | None:
    """Return the name of a parameter whose value keeps libpq from even trying to connect, or None."""
    ports = str(given.get("port", "")).split(",")
    hosts = given.get("hostaddr") or given.get("host")
    mismatch = hosts and len(ports) not in {1, len(str(hosts).split(","))}
    if mismatch or not all(_is_number(port, _PORTS) for port in ports):
        return "port"
    for name in _NUMBERS:
        if not _is_number(given.get(name, "")):
            return name
    # libpq validates all the others before it connects; connecting to _NOWHERE fails without a wait.
    conn = PGconn.connect_start(make_conninfo(url, host=_NOWHERE, hostaddr="", port="5432").encode())
    message = conn.error_message.decode("utf-8", "replace")
    conn.finish()
    if _NOWHERE in message:
        return None
    return next((name for name in given if f"{name} " in message or f'"{name}"' in message), "parameter")


def _is_number(value: object, allowed: range = range(-(1 << 31), 1 << 31)) -> bool:
    # libpq accepts white space around a number, and takes an empty value for the default.
    digits = str(value).strip()
    return not digits or (re.fullmatch("[+-]?[0-9]{1,10}", digits) is not None and int(digits) in allowed)


@contextlib.contextmanager
def translate_errors(conn: AsyncConnection | None) -> Iterator[None]:
    """Raise `DatabaseUnavailableError` for an error of the server; `conn` is None while connecting."""
    try:
        yield
    except psycopg.Error as error:
        unavailable = _as_unavailable(error, conn)
        if unavailable is None:
            raise
        raise unavailable from error


def _as_unavailable(error: psycopg.Error, conn: AsyncConnection | None) -> DatabaseUnavailableError | None:
    if isinstance(error, NoAnswerError):
        return DatabaseUnavailableError(f"The database gave {error}: the statement was cancelled.")
    if conn is None:
        return DatabaseUnavailableError(f"The database cannot be reached: {one_line(error)}")
    state = error.sqlstate or ""
    # Class 08 is a broken connection: PgBouncer reports with it that its connection to the server broke.
    if conn.closed or state in _UNAVAILABLE_STATES or state.startswith("08"):
        return DatabaseUnavailableError(f"The connection to the database was lost: {one_line(error)}")
    return None


def one_line(error: BaseException) -> str:
    """Return the error's text without libpq's line breaks."""
    return " ".join(str(error).split())

"""What an operator can set without a release: one frozen object, read from the environment once."""

from __future__ import annotations

import contextlib
import difflib
import hmac
import os
import re
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo, available_timezones

from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_SERVICE_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SHARES: Final = {
    "WATCHKEEPER_REQUEST_SAMPLE": "0.1 for every tenth trace",
    "WATCHKEEPER_RETENTION_MAX_SHARE": "0.8 for four fifths of a table",
    "WATCHKEEPER_RETENTION_BUDGET": "0.25 for a quarter of the time",
}
_SWITCHES: Final = {
    "on": True,
    "true": True,
    "1": True,
    "yes": True,
    "off": False,
    "false": False,
    "0": False,
    "no": False,
}


class Secret:
    """A value that must not be seen: printing, logging or pickling it never shows it.

    Args:
        value: The secret itself; not empty.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value:
            raise ConfigurationError("A secret is empty: give it a value, or leave it out altogether.")
        self._value = value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("A Secret is not pickled: pass the reveal()ed value where it is really needed.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._value)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def reveal(self) -> str:
        """Return the secret itself, for the one place that needs it."""
        return self._value

    def matches(self, candidate: str | bytes) -> bool:
        """Say whether `candidate` is the secret, in time that does not depend on where they differ."""
        given = candidate.encode("utf-8", "surrogateescape") if isinstance(candidate, str) else candidate
        return hmac.compare_digest(self._value.encode("utf-8", "surrogateescape"), given)


def _switch(name: str, value: str) -> bool:
    try:
        return _SWITCHES[value.strip().lower()]
    except KeyError:
        raise ConfigurationError(f"{name} takes on or off (also true/false, yes/no, 1/0).") from None


def _seconds(name: str, value: str) -> timedelta:
    try:
        return timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{name} takes a number of seconds, such as 10 or 2.5.") from None


def _share(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise _no_share(name) from None


def _no_share(name: str) -> ConfigurationError:
    return ConfigurationError(f"{name} takes a share over 0 and up to 1, such as {_SHARES[name]}.")


def _port(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise ConfigurationError(f"{name} takes a port number from 0 to 65535.")
    return int(value)


def _count(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise ConfigurationError(f"{name} takes a whole number, such as 10000.")
    return int(value)


def _text(_name: str, value: str) -> str:
    return value


def _secret(_name: str, value: str) -> Secret:
    return Secret(value)


def _folder(_name: str, value: str) -> Path:
    return Path(value).expanduser().absolute()


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return the per-user folder for state that survives a restart (XDG base directory specification)."""
    base = environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):  # the specification says that a relative path is to be ignored
        return Path(base) / "watchkeeper"
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root, and the account it runs as cannot pass through root's home.
        return Path("/var/lib/watchkeeper")
    return Path(environ.get("HOME") or Path.home()) / ".local/state/watchkeeper"


def _setting(variable: str, read: Callable[[str, str], Any], default: Any) -> Any:
    return field(default=default, metadata={"variable": variable, "read": read})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything an operator can set, with its environment variable beside it.

    Args:
        service: Name of the service: the `service` of every line, the folder of its state.
        env: Name of the deployment in every line (`APP_ENV`, then `NODE_ENV`).
        log_level: Lowest level that is written: trace, debug, info, warn, error or fatal.
        host: Address that `serve` binds; anything but loopback needs `METRICS_TOKEN` for `/metrics`.
        port: TCP port that `serve` binds; 0 lets the system choose one.
        database_url: A PostgreSQL (15 or newer) of your own instead of the embedded one.
        database_owner_url: The role that owns the tables and runs the migrations; default `database_url`.
        prepared_statements: Off behind PgBouncer in transaction mode.
        state_dir: Parent of the service's state folder (embedded database, secrets); default
            `$XDG_STATE_HOME/watchkeeper`, `~/.local/state/watchkeeper`, or for root `/var/lib/watchkeeper`.
        postgres_bin: Folder of the programs of a PostgreSQL (15 or newer) for the embedded server; default
            those of the `embedded` extra.
        metrics_token: Bearer token for `/metrics` and for the details of `/health/detailed`.
        metrics_instance: Joins processes to one instance whose figures are added up, where they are not the
            workers of one server; see docs/metrics.md.
        metrics_dir: Parent of the folders in which the workers of an instance share their figures; default
            /dev/shm, else the folder for temporary files.
        metrics_max_series: How many series a metric may have in a worker, unless its declaration says more.
        metrics_created: On lets OpenMetrics tell when series began; Prometheus stores that as series.
        retention_timezone: IANA name of the zone in which 3 AM is meant.
        retention_max_share: What a scheduled run of more than 10,000 rows may take of its table; above it the
            run is refused and wants an operator's word.
        retention_budget: Share of the time in which a run may keep the database at work; it pauses for the
            rest.
        archive_dir: Where policies that archive write their rows before they delete them; default `archive`
            in the service's state folder.
        retention_timeout: Longest time of a run; then it has failed, and its next attempt goes on where it
            ended.
        retention_max_lag: How far a replica may be behind before a run waits for it,
        retention_max_lag_bytes: and the same as WAL, in bytes; a replication slot may keep 16 times that.
        retention_long_transaction: Age from which on a transaction of others keeps a run waiting.
        retention: Off stops scheduled retention runs; what is due is caught up once after switching it on.
        request_lines: Off stops the line of each request; metrics go on.
        request_sample: Share of the requests completed below 500 that have a line, chosen by their trace; all
            others always have one.
        probe_lines: On also writes the lines of successful probes and scrapes.
        metrics: Off closes `/metrics` (404) and counts nothing for HTTP.
        health: Off leaves only `/livez` of the health endpoints.
        shutdown_delay: How long `serve` stays up and not ready after SIGTERM, before it stops accepting.
        shutdown_grace: How long requests in flight may take to finish after that.

    Raises:
        ConfigurationError: A value is not usable; the message names the setting and the fix.
    """

    service: str
    env: str = _setting("APP_ENV", _text, "development")
    log_level: str = _setting("LOG_LEVEL", _text, "info")
    host: str = _setting("HOST", _text, "127.0.0.1")
    port: int = _setting("PORT", _port, 3001)
    database_url: Secret | None = _setting("DATABASE_URL", _secret, None)
    database_owner_url: Secret | None = _setting("DATABASE_OWNER_URL", _secret, None)
    prepared_statements: bool = _setting("DATABASE_PREPARED_STATEMENTS", _switch, True)
    state_dir: Path = _setting("WATCHKEEPER_STATE_DIR", _folder, Path())
    postgres_bin: Path | None = _setting("WATCHKEEPER_POSTGRES_BIN", _folder, None)
    metrics_token: Secret | None = _setting("METRICS_TOKEN", _secret, None)
    metrics_instance: str | None = _setting("WATCHKEEPER_METRICS_INSTANCE", _text, None)
    metrics_dir: Path | None = _setting("WATCHKEEPER_METRICS_DIR", _folder, None)
    metrics_max_series: int = _setting("WATCHKEEPER_METRICS_MAX_SERIES", _count, 10_000)
    metrics_created: bool = _setting("WATCHKEEPER_METRICS_CREATED", _switch, False)
    retention_timezone: str = _setting("RETENTION_TIMEZONE", _text, "UTC")
    retention_max_share: float = _setting("WATCHKEEPER_RETENTION_MAX_SHARE", _share, 0.5)
    retention_budget: float = _setting("WATCHKEEPER_RETENTION_BUDGET", _share, 0.25)
    archive_dir: Path | None = _setting("WATCHKEEPER_ARCHIVE_DIR", _folder, None)
    retention_timeout: timedelta = _setting("WATCHKEEPER_RETENTION_TIMEOUT", _seconds, timedelta(hours=4))
    retention_max_lag: timedelta = _setting("WATCHKEEPER_RETENTION_MAX_LAG", _seconds, timedelta(seconds=30))
    retention_max_lag_bytes: int = _setting("WATCHKEEPER_RETENTION_MAX_LAG_BYTES", _count, 256 << 20)
    retention_long_transaction: timedelta = _setting(
        "WATCHKEEPER_RETENTION_LONG_TRANSACTION", _seconds, timedelta(minutes=5)
    )
    retention: bool = _setting("WATCHKEEPER_RETENTION", _switch, True)
    request_lines: bool = _setting("WATCHKEEPER_REQUEST_LINES", _switch, True)
    request_sample: float = _setting("WATCHKEEPER_REQUEST_SAMPLE", _share, 1.0)
    probe_lines: bool = _setting("WATCHKEEPER_PROBE_LINES", _switch, False)
    metrics: bool = _setting("WATCHKEEPER_METRICS", _switch, True)
    health: bool = _setting("WATCHKEEPER_HEALTH", _switch, True)
    shutdown_delay: timedelta = _setting("WATCHKEEPER_SHUTDOWN_DELAY", _seconds, timedelta(0))
    shutdown_grace: timedelta = _setting("WATCHKEEPER_SHUTDOWN_GRACE", _seconds, timedelta(seconds=20))

    def __post_init__(self) -> None:
        if not _SERVICE_NAME.fullmatch(self.service):
            raise ConfigurationError(
                f"The service name {self.service!r} is not usable: take 1 to 63 lower-case letters, digits"
                " and hyphens, starting with a letter."
            )
        if not 0 <= self.port <= 65535:
            raise ConfigurationError("PORT takes a port number from 0 to 65535.")
        for variable in _SHARES:
            share = getattr(self, variable.removeprefix("WATCHKEEPER_").lower())
            if not 0.0 < share <= 1.0:  # also where it is not a number
                raise _no_share(variable)
        self._check_patience()
        if self.database_owner_url is not None and self.database_url is None:
            raise ConfigurationError("DATABASE_OWNER_URL is set without DATABASE_URL: set both, or neither.")
        for name in ("shutdown_delay", "shutdown_grace"):
            if getattr(self, name) < timedelta(0):
                raise ConfigurationError(f"WATCHKEEPER_{name.upper()} may not be negative.")
        if self.metrics_max_series < 1:
            raise ConfigurationError(
                "WATCHKEEPER_METRICS_MAX_SERIES takes 1 or more: a metric needs a series."
            )
        check_timezone(self.retention_timezone, "RETENTION_TIMEZONE")
        if self.state_dir == Path():
            object.__setattr__(self, "state_dir", default_state_dir(os.environ))

    def _check_patience(self) -> None:
        for name in ("retention_timeout", "retention_max_lag", "retention_long_transaction"):
            if getattr(self, name) <= timedelta(0):
                raise ConfigurationError(f"WATCHKEEPER_{name.upper()} takes more than 0 seconds.")
        if self.retention_max_lag_bytes < 1:
            raise ConfigurationError("WATCHKEEPER_RETENTION_MAX_LAG_BYTES takes 1 or more bytes.")

    @classmethod
    def from_env(cls, service: str, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings of `service`; an empty variable counts as not set.

        Args:
            service: Name of the service.
            environ: Where to read from; default the process's environment.

        Raises:
            ConfigurationError: A variable holds something that is not usable.
        """
        env = os.environ if environ is None else environ
        given: dict[str, Any] = {"state_dir": default_state_dir(env)}
        if env.get("NODE_ENV"):
            given["env"] = env["NODE_ENV"]  # what the Node services of the same deployment already set
        for setting in fields(cls):
            variable = setting.metadata.get("variable")
            if variable and env.get(variable):
                given[setting.name] = setting.metadata["read"](variable, env[variable])
        return cls(service=service, **given)

    def secrets(self) -> Iterator[Secret]:
        """Yield every secret in here, for those who have to keep them out of sight."""
        if self.metrics_token is not None:
            yield self.metrics_token
        for url in (self.database_url, self.database_owner_url):
            if url is not None:
                yield url
                password = ""
                with contextlib.suppress(ValueError):  # what is no URL is refused where it is used
                    password = urlsplit(url.reveal()).password or ""
                if password:
                    yield from (Secret(password), Secret(unquote(password)))

    @property
    def service_dir(self) -> Path:
        """The folder of this service's state."""
        return self.state_dir / self.service

    @property
    def archive_folder(self) -> Path:
        """The folder of what retention archives."""
        return self.archive_dir or self.service_dir / "archive"


def check_timezone(name: str, what: str) -> None:
    """See that there is a time zone of that name.

    Args:
        name: IANA name of a zone.
        what: The setting or argument that holds it, for the message.

    Raises:
        ConfigurationError: There is none; the message says what is near.
    """
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigurationError(
            f"{what} {name!r} does not exist: take an IANA time zone name such as Africa/Kigali or UTC.{hint}"
        ) from None

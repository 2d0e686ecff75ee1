"""The settings of a service: what an operator sets without a release, each with its variable and default."""

from __future__ import annotations

import contextlib
import difflib
import hmac
import os
import re
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo, available_timezones

from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_SERVICE_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SWITCHES: Final = {
    **dict.fromkeys(("on", "true", "1", "yes"), True),
    **dict.fromkeys(("off", "false", "0", "no"), False),
}
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30


class Secret:
    """A non-empty value that is never shown: `str`, `repr`, logging and pickling do not reveal it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value:
            raise ConfigurationError("A secret is empty: give it a value, or leave it out.")
        self._value = value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("A Secret cannot be pickled: pass the value of reveal() where it is needed.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._value)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._value

    def matches(self, candidate: str | bytes) -> bool:
        """Compare in constant time with what a caller presented, as text or as it arrived on the wire."""
        given = candidate.encode("utf-8", "surrogateescape") if isinstance(candidate, str) else candidate
        return hmac.compare_digest(self._value.encode("utf-8", "surrogateescape"), given)


class _Kind(NamedTuple):
    """How the values of a setting are parsed and which are accepted."""

    parse: Callable[[str], Any]
    takes: str = ""
    accepts: Callable[[Any], bool] = lambda _value: True

    def read(self, variable: str, text: str) -> Any:
        try:
            return self.parse(text)
        except (ValueError, OverflowError, KeyError):
            raise self.error(variable) from None

    def error(self, variable: str) -> ConfigurationError:
        return ConfigurationError(f"{variable} takes {self.takes}.")


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def _seconds(text: str) -> timedelta:
    return timedelta(seconds=float(text))


def _folder_path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _share(example: str) -> _Kind:
    takes = f"a share over 0 and up to 1, such as {example}"
    return _Kind(float, takes, lambda share: 0.0 < share <= 1.0)  # rejects NaN too


_TEXT: Final = _Kind(str)
_SECRET: Final = _Kind(Secret)
_FOLDER: Final = _Kind(_folder_path)
_SWITCH: Final = _Kind(
    lambda text: _SWITCHES[text.strip().lower()], "on or off (also true/false, yes/no, 1/0)"
)
_PORT: Final = _Kind(_whole_number, "a port number from 0 to 65535", lambda port: 0 <= port <= 65535)
_COUNT: Final = _Kind(_whole_number, "a whole number over 0, such as 10000", lambda count: count > 0)
_WAIT: Final = _Kind(
    _seconds, "a number of seconds, 0 or more, such as 10 or 2.5", lambda wait: wait >= timedelta(0)
)
_LIMIT: Final = _Kind(
    _seconds, "a number of seconds over 0, such as 10 or 2.5", lambda limit: limit > timedelta(0)
)


def _setting(variable: str, kind: _Kind, default: Any) -> Any:
    return field(default=default, metadata={"variable": variable, "kind": kind})


def _validate(settings: Any) -> None:
    for setting in fields(settings):
        kind = setting.metadata.get("kind")
        if kind is not None and not kind.accepts(getattr(settings, setting.name)):
            raise kind.error(setting.metadata["variable"])


def _read(cls: Any, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of `cls` whose variables are set; an empty variable counts as not set."""
    return {
        setting.name: setting.metadata["kind"].read(variable, environ[variable])
        for setting in fields(cls)
        if (variable := setting.metadata.get("variable")) and environ.get(variable)
    }


def _default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the user's folder for state that survives a restart (XDG base directory specification)."""
    base = environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):  # the specification ignores relative paths
        return Path(base) / "watchkeeper"
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root, and the account that it runs as cannot enter root's home.
        return Path("/var/lib/watchkeeper")
    return Path(environ.get("HOME") or Path.home()) / ".local/state/watchkeeper"


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """The pressure on the database above which a retention run waits.

    Args:
        lag: How far a replica may be behind, as a time.
        lag_bytes: How much WAL a replica may have to replay, in bytes; a replication slot may keep 16 times
            as much.
        transaction: How old another transaction in the same database may be.
        dead_rows: How many dead rows a table may have, in multiples of the number that starts autovacuum.
        vacuum_wait: Longest total wait of a run for vacuum; the run itself makes dead rows.
        disk_share: Share of the disk that must be free,
        disk_bytes: unless this many bytes are free.
    """

    lag: timedelta = _setting("WATCHKEEPER_RETENTION_MAX_LAG", _LIMIT, timedelta(seconds=30))
    lag_bytes: int = _setting("WATCHKEEPER_RETENTION_MAX_LAG_BYTES", _COUNT, 256 * _MIB)
    transaction: timedelta = _setting("WATCHKEEPER_RETENTION_LONG_TRANSACTION", _LIMIT, timedelta(minutes=5))
    dead_rows: float = 3.0
    vacuum_wait: timedelta = timedelta(minutes=2)
    disk_share: float = 0.05
    disk_bytes: int = _GIB

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def slot_bytes(self) -> int:
        """WAL that a replication slot may keep, in bytes."""
        # A slot keeps WAL from the start of the oldest transaction, so it trails on a healthy server too.
        return 16 * self.lag_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a retention run may take; `dataclasses.replace` makes a copy for one run.

    Args:
        share: Share of a table's rows that a run of more than 10,000 rows may delete; 1 is no limit.
        budget: Share of the time in which a run keeps the database busy; it pauses for the rest. 1 never
            pauses, and waits neither for vacuum nor for long transactions.
        timeout: Longest duration of a run; after it the run has failed, and the next attempt continues.
        thresholds: The pressure on the database above which a run waits.
    """

    share: float = _setting("WATCHKEEPER_RETENTION_MAX_SHARE", _share("0.8 for four fifths of a table"), 0.5)
    budget: float = _setting("WATCHKEEPER_RETENTION_BUDGET", _share("0.25 for a quarter of the time"), 0.25)
    timeout: timedelta = _setting("WATCHKEEPER_RETENTION_TIMEOUT", _LIMIT, timedelta(hours=4))
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        _validate(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything that an operator can set for a service.

    Args:
        service: Name of the service: the `service` of every log line and the name of its state folder.
        env: Name of the deployment in every log line.
        log_level: Lowest level that is written: trace, debug, info, warn, error or fatal.
        host: Address that `serve` binds; on any but loopback, `/metrics` needs `METRICS_TOKEN`.
        port: TCP port that `serve` binds; 0 lets the system choose one.
        database_url: A PostgreSQL server (15 or newer) to use instead of the embedded one.
        database_owner_url: Role that owns the tables and runs the migrations; default `database_url`.
        prepared_statements: Off behind PgBouncer in transaction mode.
        state_dir: Parent of the service's state folder (embedded database, secrets); default
            `$XDG_STATE_HOME/watchkeeper`, `~/.local/state/watchkeeper`, or for root `/var/lib/watchkeeper`.
        postgres_bin: Folder of PostgreSQL's programs (15 or newer); default those of the `embedded` extra.
        metrics_token: Bearer token for `/metrics` and for the details of `/health/detailed`.
        metrics_instance: Joins processes that are not the workers of one server; see docs/metrics.md.
        metrics_dir: Where the workers of an instance share metrics; default /dev/shm, else the folder for
            temporary files.
        metrics_max_series: Series that a metric may have in a worker, unless its declaration says otherwise.
        metrics_created: On adds the `_created` samples to OpenMetrics, which Prometheus stores as series.
        retention: Off stops scheduled retention runs; switching it on again catches up once.
        retention_timezone: IANA name of the time zone of the schedules.
        retention_limits: What a retention run may take.
        archive_dir: Where policies archive rows; default `archive` in the service's state folder.
        request_lines: Off stops the log line of each request; metrics continue.
        request_sample: Share of the requests answered below 500 that are logged, chosen by trace; all others
            are always logged.
        probe_lines: On also logs successful probes and scrapes.
        metrics: Off closes `/metrics` (404) and stops counting HTTP requests.
        health: Off leaves only `/livez` of the health endpoints.
        shutdown_delay: How long `serve` continues, not ready, after SIGTERM before it stops accepting.
        shutdown_grace: How long requests in flight may take after that.
    """

    service: str
    env: str = _setting("APP_ENV", _TEXT, "development")
    log_level: str = _setting("LOG_LEVEL", _TEXT, "info")
    host: str = _setting("HOST", _TEXT, "127.0.0.1")
    port: int = _setting("PORT", _PORT, 8000)
    database_url: Secret | None = _setting("DATABASE_URL", _SECRET, None)
    database_owner_url: Secret | None = _setting("DATABASE_OWNER_URL", _SECRET, None)
    prepared_statements: bool = _setting("DATABASE_PREPARED_STATEMENTS", _SWITCH, True)
    state_dir: Path = field(
        default_factory=_default_state_dir, metadata={"variable": "WATCHKEEPER_STATE_DIR", "kind": _FOLDER}
    )
    postgres_bin: Path | None = _setting("WATCHKEEPER_POSTGRES_BIN", _FOLDER, None)
    metrics_token: Secret | None = _setting("METRICS_TOKEN", _SECRET, None)
    metrics_instance: str | None = _setting("WATCHKEEPER_METRICS_INSTANCE", _TEXT, None)
    metrics_dir: Path | None = _setting("WATCHKEEPER_METRICS_DIR", _FOLDER, None)
    metrics_max_series: int = _setting("WATCHKEEPER_METRICS_MAX_SERIES", _COUNT, 10_000)
    metrics_created: bool = _setting("WATCHKEEPER_METRICS_CREATED", _SWITCH, False)
    retention: bool = _setting("WATCHKEEPER_RETENTION", _SWITCH, True)
    retention_timezone: str = _setting("RETENTION_TIMEZONE", _TEXT, "UTC")
    retention_limits: Limits = field(default_factory=Limits)
    archive_dir: Path | None = _setting("WATCHKEEPER_ARCHIVE_DIR", _FOLDER, None)
    request_lines: bool = _setting("WATCHKEEPER_REQUEST_LINES", _SWITCH, True)
    request_sample: float = _setting("WATCHKEEPER_REQUEST_SAMPLE", _share("0.1 for every tenth trace"), 1.0)
    probe_lines: bool = _setting("WATCHKEEPER_PROBE_LINES", _SWITCH, False)
    metrics: bool = _setting("WATCHKEEPER_METRICS", _SWITCH, True)
    health: bool = _setting("WATCHKEEPER_HEALTH", _SWITCH, True)
    shutdown_delay: timedelta = _setting("WATCHKEEPER_SHUTDOWN_DELAY", _WAIT, timedelta(0))
    shutdown_grace: timedelta = _setting("WATCHKEEPER_SHUTDOWN_GRACE", _WAIT, timedelta(seconds=20))

    def __post_init__(self) -> None:
        if not _SERVICE_NAME.fullmatch(self.service):
            raise ConfigurationError(
                f"The service name {self.service!r} is not usable: take 1 to 63 lower-case letters, digits"
                " and hyphens, starting with a letter."
            )
        _validate(self)
        check_timezone(self.retention_timezone, "RETENTION_TIMEZONE")
        if self.database_owner_url is not None and self.database_url is None:
            raise ConfigurationError("DATABASE_OWNER_URL is set without DATABASE_URL: set both, or neither.")

    @classmethod
    def from_env(cls, service: str, environ: Mapping[str, str] | None = None, **defaults: Any) -> Self:
        """Read the settings of `service`; an empty variable counts as not set.

        Args:
            service: Name of the service.
            environ: Where to read from; default the process's environment.
            **defaults: The service's own defaults, by field, for what the environment does not set:
                `Settings.from_env("shop", port=3000)`.
        """
        env = os.environ if environ is None else environ
        thresholds = Thresholds(**_read(Thresholds, env))
        given = {
            "state_dir": _default_state_dir(env),
            "retention_limits": Limits(thresholds=thresholds, **_read(Limits, env)),
            **defaults,
            **_read(cls, env),
        }
        return cls(service=service, **given)

    def secrets(self) -> Iterator[Secret]:
        """Yield every secret of the settings, for redaction."""
        if self.metrics_token is not None:
            yield self.metrics_token
        for url in (self.database_url, self.database_owner_url):
            if url is not None:
                yield url
                password = ""
                with contextlib.suppress(ValueError):  # an invalid URL is refused where it is used
                    password = urlsplit(url.reveal()).password or ""
                if password:
                    yield from (Secret(password), Secret(unquote(password)))

    @property
    def service_dir(self) -> Path:
        """The state folder of this service."""
        return self.state_dir / self.service

    @property
    def archive_folder(self) -> Path:
        """The folder of archived rows."""
        return self.archive_dir or self.service_dir / "archive"


def check_timezone(name: str, what: str) -> None:
    """Refuse a time zone that does not exist; `what` names the setting or argument in the message."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigurationError(
            f"{what} {name!r} does not exist: take an IANA time zone name such as Africa/Kigali or UTC.{hint}"
        ) from None

"""The backend's settings, in addition to Watchkeeper's."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.settings import Secret, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SERVICE: Final = "realestate-backend"
DEFAULT_PORT: Final = 3001
DEFAULT_AGENT: Final = "moltbot"
DEFAULT_GATEWAY_URL: Final = "http://127.0.0.1:18789"

_SOURCE: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_MAX_SECRETS: Final = 2  # the new and the old one during a rotation
_BODY_LIMIT: Final = 1024 * 1024
_BODY_TIMEOUT: Final = timedelta(seconds=10)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendSettings:
    """The backend's own settings, with their environment variables.

    Args:
        service_token: `SERVICE_TOKEN`, the bearer token for tools, pairing and writes; without it they answer
            503.
        webhook_secrets: `WEBHOOK_SECRETS`, the secrets by source; other sources are unknown (404).
        gateway_url: `MOLTBOT_GATEWAY_URL`, whose `/health` the check `moltbot` requests.
        body_limit: `REALESTATE_BODY_LIMIT`, the largest request body in bytes; default 1 MiB.
        body_timeout: `REALESTATE_BODY_TIMEOUT`, the longest time for a body to arrive; default 10 s.

    Raises:
        ConfigurationError: A value is not usable; the message names the variable and the fix.
    """

    service_token: Secret | None = None
    webhook_secrets: Mapping[str, tuple[Secret, ...]] = field(default_factory=dict)
    gateway_url: str = DEFAULT_GATEWAY_URL
    body_limit: int = _BODY_LIMIT
    body_timeout: timedelta = _BODY_TIMEOUT

    def __post_init__(self) -> None:
        if not _is_http_url(self.gateway_url):
            raise ConfigurationError("MOLTBOT_GATEWAY_URL takes an address such as http://127.0.0.1:18789.")
        if self.body_limit < 1:
            raise ConfigurationError("REALESTATE_BODY_LIMIT takes a number of bytes, at least 1.")
        if self.body_timeout <= timedelta(0):
            raise ConfigurationError("REALESTATE_BODY_TIMEOUT takes a number of seconds above 0.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings; an empty variable counts as not set.

        Raises:
            ConfigurationError: A variable holds a value that is not usable.
        """
        env = os.environ if environ is None else environ
        token = env.get("SERVICE_TOKEN")
        return cls(
            service_token=Secret(token) if token else None,
            webhook_secrets=parse_webhook_secrets(env.get("WEBHOOK_SECRETS", "")),
            gateway_url=env.get("MOLTBOT_GATEWAY_URL") or DEFAULT_GATEWAY_URL,
            body_limit=int(_number(env, "REALESTATE_BODY_LIMIT", _BODY_LIMIT)),
            body_timeout=timedelta(
                seconds=_number(env, "REALESTATE_BODY_TIMEOUT", _BODY_TIMEOUT.total_seconds())
            ),
        )

    def secrets(self) -> Iterator[Secret]:
        """Yield every secret, for redaction."""
        if self.service_token is not None:
            yield self.service_token
        for of_source in self.webhook_secrets.values():
            yield from of_source


def service_settings(environ: Mapping[str, str]) -> Settings:
    """Read Watchkeeper's settings with this service's defaults.

    The default port is 3001. `NODE_ENV`, which the deployment's Node services set, is used if `APP_ENV` is
    not set.

    Raises:
        ConfigurationError: A variable holds a value that is not usable.
    """
    node_env = environ.get("NODE_ENV")
    return Settings.from_env(SERVICE, environ, port=DEFAULT_PORT, **({"env": node_env} if node_env else {}))


def parse_webhook_secrets(value: str) -> dict[str, tuple[Secret, ...]]:
    """Parse `source=secret,…`; a source has two entries while its secret is rotated.

    Raises:
        ConfigurationError: The value has another form; the message never shows a secret.
    """
    found: dict[str, tuple[Secret, ...]] = {}
    for number, entry in enumerate((part.strip() for part in value.split(",")), start=1):
        if not entry:
            continue
        source, equals, secret = entry.partition("=")
        if not equals or not secret or not _SOURCE.fullmatch(source):
            raise ConfigurationError(
                f"WEBHOOK_SECRETS, entry {number}: write source=secret, the source in lower-case letters,"
                " digits, - and _, starting with a letter."
            )
        found[source] = (*found.get(source, ()), Secret(secret))
        if len(found[source]) > _MAX_SECRETS:
            raise ConfigurationError(
                f"WEBHOOK_SECRETS holds more than two secrets of {source}: keep the new one and the one"
                " before it."
            )
    return found


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    try:
        number = float(env.get(name) or default)
    except ValueError:
        number = math.nan
    if not 0 < number < 2**31:
        raise ConfigurationError(f"{name} takes a number above 0 and below {2**31}.")
    return number

import pickle
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.settings import Limits, Secret, Settings, Thresholds


def test_defaults() -> None:
    """Without any variable, the service binds loopback, logs at info and prunes in UTC."""
    settings = Settings.from_env("shop", {"XDG_STATE_HOME": "/state"})
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.env, settings.log_level) == ("development", "info")
    assert settings.retention_timezone == "UTC"
    assert settings.metrics_token is None
    assert settings.database_url is None
    assert settings.service_dir == Path("/state/watchkeeper/shop")
    assert settings.archive_folder == settings.service_dir / "archive"


def test_a_service_has_defaults_of_its_own() -> None:
    """A default of the service replaces the library's, and a variable replaces both."""
    assert Settings.from_env("shop", {}, port=3001).port == 3001
    assert Settings.from_env("shop", {"PORT": "80"}, port=3001).port == 80


def test_every_variable_is_read() -> None:
    """Each setting that has a variable takes its value from it."""
    settings = Settings.from_env(
        "shop",
        {
            "HOST": "0.0.0.0",  # noqa: S104 - what an operator of a container sets
            "PORT": "8080",
            "DATABASE_URL": "postgresql://shop:pw@db/shop",
            "DATABASE_OWNER_URL": "postgresql://owner:pw@db/shop",
            "DATABASE_PREPARED_STATEMENTS": "off",
            "WATCHKEEPER_STATE_DIR": "/var/lib/shop",
            "METRICS_TOKEN": "hush",
            "WATCHKEEPER_POSTGRES_BIN": "/usr/lib/postgresql/15/bin",
            "RETENTION_TIMEZONE": "Africa/Kigali",
            "WATCHKEEPER_RETENTION": "off",
            "WATCHKEEPER_ARCHIVE_DIR": "/srv/archive",
            "WATCHKEEPER_RETENTION_MAX_SHARE": "0.75",
            "WATCHKEEPER_RETENTION_BUDGET": "0.125",
            "WATCHKEEPER_RETENTION_TIMEOUT": "60",
            "WATCHKEEPER_RETENTION_MAX_LAG": "2.5",
            "WATCHKEEPER_RETENTION_MAX_LAG_BYTES": "1048576",
            "WATCHKEEPER_RETENTION_LONG_TRANSACTION": "10",
            "WATCHKEEPER_REQUEST_LINES": "no",
            "WATCHKEEPER_PROBE_LINES": "TRUE",
            "WATCHKEEPER_REQUEST_SAMPLE": "0.25",
            "WATCHKEEPER_METRICS": "0",
            "WATCHKEEPER_HEALTH": "false",
            "WATCHKEEPER_SHUTDOWN_DELAY": "2.5",
            "WATCHKEEPER_SHUTDOWN_GRACE": "7",
            "LOG_LEVEL": "debug",
        },
    )
    assert (settings.host, settings.port, settings.log_level) == ("0.0.0.0", 8080, "debug")  # noqa: S104 - as above
    assert settings.database_url == Secret("postgresql://shop:pw@db/shop")
    assert settings.database_owner_url == Secret("postgresql://owner:pw@db/shop")
    assert settings.metrics_token == Secret("hush")
    assert settings.service_dir == Path("/var/lib/shop/shop")
    assert settings.postgres_bin == Path("/usr/lib/postgresql/15/bin")
    assert settings.archive_folder == Path("/srv/archive")
    assert settings.retention_timezone == "Africa/Kigali"
    assert settings.retention_limits == Limits(
        share=0.75,
        budget=0.125,
        timeout=timedelta(minutes=1),
        thresholds=Thresholds(
            lag=timedelta(seconds=2.5), lag_bytes=1 << 20, transaction=timedelta(seconds=10)
        ),
    )
    assert settings.retention_limits.thresholds.slot_bytes == 16 << 20
    switches = (settings.retention, settings.request_lines, settings.metrics, settings.health)
    assert switches == (False, False, False, False)
    assert settings.prepared_statements is False
    assert settings.probe_lines is True
    assert settings.request_sample == 0.25
    assert settings.shutdown_delay == timedelta(seconds=2.5)
    assert settings.shutdown_grace == timedelta(seconds=7)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PORT": "http"}, r"PORT takes a port number from 0 to 65535"),
        ({"PORT": "70000"}, r"PORT takes a port number from 0 to 65535"),
        ({"PORT": "٣"}, r"PORT takes a port number"),
        ({"WATCHKEEPER_RETENTION": "maybe"}, r"WATCHKEEPER_RETENTION takes on or off"),
        ({"WATCHKEEPER_SHUTDOWN_GRACE": "soon"}, r"WATCHKEEPER_SHUTDOWN_GRACE takes a number of seconds"),
        ({"WATCHKEEPER_SHUTDOWN_GRACE": "1e300"}, r"WATCHKEEPER_SHUTDOWN_GRACE takes a number of seconds"),
        (
            {"WATCHKEEPER_SHUTDOWN_DELAY": "-1"},
            r"WATCHKEEPER_SHUTDOWN_DELAY takes a number of seconds, 0 or more",
        ),
        *(
            (
                {"WATCHKEEPER_REQUEST_SAMPLE": share},
                r"WATCHKEEPER_REQUEST_SAMPLE takes a share over 0 and up to 1",
            )
            for share in ("0", "-0.1", "1.01", "10%", "nan", "inf")
        ),
        ({"WATCHKEEPER_REQUEST_SAMPLE": "7"}, r"such as 0\.1 for every tenth trace\."),
        (
            {"WATCHKEEPER_RETENTION_MAX_SHARE": "7"},
            r"MAX_SHARE takes a share .* for four fifths of a table\.",
        ),
        ({"WATCHKEEPER_RETENTION_BUDGET": "7"}, r"BUDGET takes a share .* for a quarter of the time\."),
        *(
            (
                {f"WATCHKEEPER_RETENTION_{name}": "0"},
                rf"WATCHKEEPER_RETENTION_{name} takes a number of seconds over 0",
            )
            for name in ("TIMEOUT", "MAX_LAG", "LONG_TRANSACTION")
        ),
        (
            {"WATCHKEEPER_RETENTION_MAX_LAG_BYTES": "0"},
            r"RETENTION_MAX_LAG_BYTES takes a whole number over 0",
        ),
        ({"WATCHKEEPER_RETENTION_MAX_LAG_BYTES": "1 GB"}, r"RETENTION_MAX_LAG_BYTES takes a whole number"),
        ({"RETENTION_TIMEZONE": "Africa/Kigalli"}, r"Did you mean Africa/Kigali\?"),
        ({"RETENTION_TIMEZONE": "3 AM"}, r"RETENTION_TIMEZONE '3 AM' does not exist"),
        ({"DATABASE_OWNER_URL": "postgresql://o@db/x"}, r"DATABASE_OWNER_URL is set without DATABASE_URL"),
    ],
)
def test_an_unusable_value_is_named_with_its_fix(environ: dict[str, str], message: str) -> None:
    """An unusable variable is an error that names it and the fix, and shows no value."""
    with pytest.raises(ConfigurationError, match=message):
        Settings.from_env("shop", environ)


@pytest.mark.parametrize("name", ["", "Shop", "-shop", "a b", "x" * 64, "shop\n"])
def test_a_service_name_is_safe_as_a_folder(name: str) -> None:
    """The service's name becomes a folder, a role and a label, so its characters are restricted."""
    with pytest.raises(ConfigurationError, match=r"The service name .* is not usable"):
        Settings(service=name)


@pytest.mark.parametrize(
    ("user", "environ", "folder"),
    [
        (1000, {"HOME": "/home/x"}, "/home/x/.local/state/watchkeeper"),
        (1000, {"HOME": "/home/x", "XDG_STATE_HOME": "relative"}, "/home/x/.local/state/watchkeeper"),
        (1000, {"HOME": "/home/x", "XDG_STATE_HOME": "/var/state"}, "/var/state/watchkeeper"),
        (0, {"HOME": "/root"}, "/var/lib/watchkeeper"),
        (0, {"HOME": "/root", "XDG_STATE_HOME": "/var/state"}, "/var/state/watchkeeper"),
    ],
)
def test_default_state_dir(
    monkeypatch: pytest.MonkeyPatch, user: int, environ: dict[str, str], folder: str
) -> None:
    """State follows the XDG specification; root's lies outside root's home, so that PostgreSQL can enter."""
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert Settings.from_env("shop", environ).state_dir == Path(folder)


@given(st.text(min_size=1))
def test_a_secret_never_shows(value: str) -> None:
    """Printing any secret gives the same mask."""
    secret = Secret(value)
    assert f"{secret} {secret!r}" == "Secret('***') Secret('***')"
    assert secret.matches(value)
    assert not secret.matches(value + "x")
    assert hash(secret) == hash(Secret(value))


def test_a_secret_is_not_empty_and_not_pickled() -> None:
    """An empty token would admit everyone, and pickling would write the value unmasked."""
    with pytest.raises(ConfigurationError, match="A secret is empty"):
        Secret("")
    with pytest.raises(TypeError, match="A Secret cannot be pickled"):
        pickle.dumps(Secret("hush"))


def test_a_secret_matches_bytes_and_other_secrets() -> None:
    """A secret equals another secret of the same value, and no plain text."""
    assert Secret("hush").matches(b"hush")
    assert Secret("hush") == Secret("hush")
    assert Secret("hush") != "hush"


def test_settings_list_their_secrets() -> None:
    """Tokens, whole URLs, and their passwords as written and decoded are listed for redaction."""
    settings = Settings(
        service="shop",
        metrics_token=Secret("hush"),
        database_url=Secret("postgresql://shop:p%40ss@db/shop"),
        database_owner_url=Secret("postgresql://[broken"),
    )
    assert [secret.reveal() for secret in settings.secrets()] == [
        "hush",
        "postgresql://shop:p%40ss@db/shop",
        "p%40ss",
        "p@ss",
        "postgresql://[broken",
    ]

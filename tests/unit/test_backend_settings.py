from datetime import timedelta

import pytest

from realestate.settings import BackendSettings, parse_webhook_secrets, service_settings
from watchkeeper.exceptions import ConfigurationError


def test_defaults_are_the_contracts() -> None:
    """Without any variable there is no token and no source, and the gateway is Moltbot's address."""
    settings = BackendSettings.from_env({})
    assert settings.service_token is None
    assert settings.webhook_secrets == {}
    assert settings.gateway_url == "http://127.0.0.1:18789"
    assert (settings.body_limit, settings.body_timeout) == (1024 * 1024, timedelta(seconds=10))


@pytest.mark.parametrize(
    ("environ", "env"),
    [
        ({"APP_ENV": "production", "NODE_ENV": "test"}, "production"),
        ({"NODE_ENV": "test"}, "test"),
        ({"APP_ENV": "", "NODE_ENV": "test"}, "test"),
        ({}, "development"),
    ],
)
def test_env_falls_back_to_node_env(environ: dict[str, str], env: str) -> None:
    """APP_ENV names the deployment, then NODE_ENV, then it is development."""
    settings = service_settings(environ)
    assert (settings.env, settings.port) == (env, 3001)


def test_every_variable_is_read() -> None:
    """Each variable sets its setting."""
    settings = BackendSettings.from_env(
        {
            "SERVICE_TOKEN": "s3cret",
            "WEBHOOK_SECRETS": "moltbot=one, other=two,moltbot=three=x",
            "MOLTBOT_GATEWAY_URL": "https://gateway.example:8443/base",
            "REALESTATE_BODY_LIMIT": "4096",
            "REALESTATE_BODY_TIMEOUT": "2.5",
        }
    )
    assert settings.service_token is not None
    assert settings.service_token.matches("s3cret")
    revealed = {name: [one.reveal() for one in of] for name, of in settings.webhook_secrets.items()}
    assert revealed == {"moltbot": ["one", "three=x"], "other": ["two"]}
    assert settings.gateway_url == "https://gateway.example:8443/base"
    assert (settings.body_limit, settings.body_timeout) == (4096, timedelta(seconds=2.5))
    assert sorted(one.reveal() for one in settings.secrets()) == ["one", "s3cret", "three=x", "two"]


def test_secrets_are_not_shown() -> None:
    """Printed settings show that there are secrets, but not their values."""
    settings = BackendSettings.from_env({"SERVICE_TOKEN": "hidden1", "WEBHOOK_SECRETS": "a=hidden2"})
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize("value", ["moltbot", "=x", "moltbot=", "Moltbot=x", "a b=x", "9=x", "x" * 33 + "=y"])
def test_malformed_webhook_secrets_are_refused_without_showing_them(value: str) -> None:
    """The message names the entry and the form, not its content."""
    with pytest.raises(ConfigurationError, match="WEBHOOK_SECRETS, entry 2: write source=secret") as caught:
        parse_webhook_secrets(f"good=hidden,{value}")
    assert "hidden" not in str(caught.value)


def test_third_secret_of_a_source_is_refused() -> None:
    """A rotation needs two; a third was forgotten."""
    with pytest.raises(ConfigurationError, match="more than two secrets of a"):
        parse_webhook_secrets("a=1,a=2,a=3")


@pytest.mark.parametrize(
    "url", ["gateway:18789", "ftp://gateway", "http://", "http://[::1", "http://h:0", "http://h:99999"]
)
def test_unusable_gateway_address_is_refused(url: str) -> None:
    """The gateway's URL is http or https with a host."""
    with pytest.raises(ConfigurationError, match="MOLTBOT_GATEWAY_URL takes an address"):
        BackendSettings.from_env({"MOLTBOT_GATEWAY_URL": url})


@pytest.mark.parametrize("name", ["REALESTATE_BODY_LIMIT", "REALESTATE_BODY_TIMEOUT"])
@pytest.mark.parametrize("value", ["many", "0", "-1", "nan", "inf", "1e99"])
def test_unusable_numbers_are_refused(name: str, value: str) -> None:
    """A limit is a plausible number above 0."""
    with pytest.raises(ConfigurationError, match=f"{name} takes a number above 0"):
        BackendSettings.from_env({name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"body_limit": 0}, "REALESTATE_BODY_LIMIT"),
        ({"body_timeout": timedelta(0)}, "REALESTATE_BODY_TIMEOUT"),
    ],
)
def test_settings_check_themselves(given: dict[str, int | timedelta], message: str) -> None:
    """The same holds for settings made in code."""
    with pytest.raises(ConfigurationError, match=message):
        BackendSettings(**given)  # type: ignore[arg-type]

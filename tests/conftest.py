"""Loads the fixtures of `support`, and removes the variables of a service that the developer runs."""

import os
import signal

from hypothesis import HealthCheck, settings

# The service's variables would reach tests that read the environment, and the programs that tests start.
_OURS = (
    *(
        "APP_ENV",
        "DATABASE_",
        "HOST",
        "LOG_LEVEL",
        "METRICS_TOKEN",
        "MOLTBOT_",
        "NODE_ENV",
        "PORT",
        "REALESTATE_",
    ),
    *("RETENTION_", "SERVICE_TOKEN", "WATCHKEEPER_", "WEBHOOK_SECRETS", "XDG_STATE_HOME"),
)

pytest_plugins = [
    "support.logs",
    "support.postgres",
    "support.embedded",
    "support.backend",
    "support.prometheus",
    "support.retention",
]


def pytest_configure() -> None:
    """Remove the service's variables, restore Ctrl-C, and lift the time limits of property tests."""
    settings.register_profile(
        "busy machine",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("busy machine")
    for name in list(os.environ):
        if name.startswith(_OURS) and name != "HOSTNAME":
            del os.environ[name]
    # In the background a shell sets SIGINT to ignore, which every child process would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

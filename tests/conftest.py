"""Loads the fixtures of `support`, and removes the variables of a service that the developer runs."""

from __future__ import annotations

import os
import signal

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
    """Remove the service's variables, and restore the handling of Ctrl-C."""
    for name in list(os.environ):
        if name.startswith(_OURS) and name != "HOSTNAME":
            del os.environ[name]
    # In the background a shell sets SIGINT to ignore, which every child process would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

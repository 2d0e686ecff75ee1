"""The fixtures that every test may ask for live in `support`; what the developer exported stays outside."""

from __future__ import annotations

import os
import signal

# The service's own variables would reach the programs that tests start, and tests that read the environment.
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
    """Forget the variables of a service that the developer runs."""
    for name in list(os.environ):
        if name.startswith(_OURS) and name != "HOSTNAME":
            del os.environ[name]
    # A shell that runs this in the background has it ignore Ctrl-C, and so would every program below it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""A keeper for the tests of the commands: `--app support.service:keeper`."""

import os
from datetime import timedelta
from pathlib import Path

from support.retention import EVENTS, SESSIONS
from watchkeeper import Secret, Settings, Watchkeeper
from watchkeeper.settings import Limits, Thresholds

NOT_A_KEEPER = "a text"


def keeper() -> Watchkeeper:
    """Return a keeper for the database of the environment, else for an embedded one."""
    url = os.environ["TEST_URL"]
    return Watchkeeper(
        "test",
        settings=Settings(
            service="test",
            database_url=Secret(url) if url else None,
            database_owner_url=Secret(os.environ["TEST_OWNER_URL"]) if url else None,
            state_dir=Path(os.environ["TEST_STATE"]),
            retention_limits=Limits(thresholds=_thresholds()),
        ),
        retention=[EVENTS, SESSIONS],
    )


def _thresholds() -> Thresholds:
    return Thresholds(transaction=timedelta(seconds=float(os.environ.get("TEST_LONG_TRANSACTION_S", "300"))))


def without_database() -> Watchkeeper:
    """Return the keeper of a service without a database."""
    return Watchkeeper("bare", settings=Settings(service="bare"))

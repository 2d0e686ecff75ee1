"""Fixtures for logging: lines in a file, and a clean state of the logging modules after each test."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from support.lines import LineFile
from watchkeeper.logs import Redactor
from watchkeeper.logs._logging import Logging

_install = Logging.install
_SERVERS: Final = ("_granian", "granian.access", "uvicorn", "uvicorn.access", "uvicorn.error")


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[LineFile]:
    """Return a sink that writes to a file, and the lines in it."""
    file = LineFile(tmp_path / "lines")
    yield file
    file.close()


@pytest.fixture
def shop(lines: LineFile) -> Logging:
    """Return an installed Logging that knows one secret."""
    shop = Logging(service="shop", env="test", sink=lines.sink, redactor=Redactor(["s3cr3t-of-the-shop"]))
    shop.install()
    return shop


@pytest.fixture(autouse=True)
def logging_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uninstall in reverse order whatever a test has installed."""
    installed: list[Logging] = []

    def install(logs: Logging) -> None:
        installed.append(logs)
        _install(logs)

    monkeypatch.setattr(Logging, "install", install)
    yield
    for logs in reversed(installed):
        logs.uninstall()
    logging.getLogger().setLevel(logging.WARNING)
    for name in _SERVERS:  # they leave their configuration behind; granian disables its loggers
        server = logging.getLogger(name)
        server.setLevel(logging.NOTSET)
        server.handlers.clear()
        server.propagate, server.disabled = True, False

"""Logging that a test took over is given back after it: the next test starts from nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import pytest

from watchkeeper.logs._logging import Logging

if TYPE_CHECKING:
    from collections.abc import Iterator

_install = Logging.install
_SERVERS: Final = ("_granian", "granian.access", "uvicorn", "uvicorn.access", "uvicorn.error")


@pytest.fixture(autouse=True)
def logging_given_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Note who installs, and uninstall them in the other order."""
    owners: list[Logging] = []

    def install(owner: Logging) -> None:
        owners.append(owner)
        _install(owner)

    monkeypatch.setattr(Logging, "install", install)
    yield
    for owner in reversed(owners):
        owner.uninstall()
    logging.getLogger().setLevel(logging.WARNING)
    for name in _SERVERS:  # which set up their own, granian even above every level, and leave that behind
        server = logging.getLogger(name)
        server.setLevel(logging.NOTSET)
        server.handlers.clear()
        server.propagate, server.disabled = True, False

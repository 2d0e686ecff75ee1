"""The fixtures that every test may ask for live in `support`."""

from __future__ import annotations

from importlib.util import find_spec

pytest_plugins = [
    name
    for name in ("support.postgres", "support.embedded", "support.backend", "support.prometheus")
    if find_spec(name) is not None
]

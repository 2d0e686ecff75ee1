"""Secrets for a first start: made once, kept in the state folder, readable by their owner only.

`SERVICE_TOKEN` and `WEBHOOK_SECRETS` are made together, in a file that a shell can source; what the
environment holds wins over it. `METRICS_TOKEN` is never made: without it `/metrics` answers to loopback only.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from realestate.settings import DEFAULT_AGENT
from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME: Final = "secrets.env"
NAMES: Final = ("SERVICE_TOKEN", "WEBHOOK_SECRETS")

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def complete_secrets(environ: Mapping[str, str], folder: Path) -> tuple[dict[str, str], str | None]:
    """Return the environment with the secrets that it lacks, and what to tell the operator about it.

    Args:
        environ: The environment.
        folder: The service's state folder; made when it is missing.

    Raises:
        ConfigurationError: The file cannot be made or read, is readable by others, or lacks a secret.
    """
    missing = [name for name in NAMES if not environ.get(name)]
    if not missing:
        return dict(environ), None
    path = folder / FILE_NAME
    try:
        made = _make(path)
        found = read_secrets(path)
    except OSError as error:
        raise ConfigurationError(
            f"{' and '.join(missing)} cannot be kept in {path}: {error.strerror}. Set them in the"
            " environment, or WATCHKEEPER_STATE_DIR to a folder of your own."
        ) from error
    lacking = [name for name in missing if not found.get(name)]
    if lacking:
        raise ConfigurationError(f"{path} lacks {' and '.join(lacking)}: put it back, or remove the file.")
    told = f"{'made' if made else 'using'} {' and '.join(missing)} {'in' if made else 'of'} {path}"
    return {**environ, **{name: found[name] for name in missing}}, told


def read_secrets(path: Path) -> dict[str, str]:
    """Return the names and values of the file.

    Args:
        path: The file.

    Raises:
        ConfigurationError: Others than its owner may read it.
        OSError: It cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_mode & _OTHERS:
            raise ConfigurationError(f"{path} may be read by others: chmod 600 it, and change what it holds.")
        lines = [line.strip().partition("=") for line in file if not line.lstrip().startswith("#")]
    return {name: value for name, _, value in lines if name}


def _make(path: Path) -> bool:
    """Make the file unless it is there; of two that start at once, one makes it and both use it."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp gives mode 0600, and a link appears whole or not at all: nobody reads half a file.
    descriptor, draft = tempfile.mkstemp(prefix=f".{FILE_NAME}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(
                "# Made at the first start. The environment wins over it; remove it to have new ones made.\n"
                f"SERVICE_TOKEN={secrets.token_urlsafe(32)}\n"
                f"WEBHOOK_SECRETS={DEFAULT_AGENT}={secrets.token_urlsafe(32)}\n"
            )
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        Path(draft).unlink()
    return True

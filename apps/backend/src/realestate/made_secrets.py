"""Generates secrets at the first start, in a file that only its owner can read.

`SERVICE_TOKEN` and `WEBHOOK_SECRETS` are generated together, in a file in the state folder that a shell can
source; the environment overrides it. `METRICS_TOKEN` is never generated: without it `/metrics` answers to
loopback only.
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

_MODE_OF_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def complete_secrets(environ: Mapping[str, str], folder: Path) -> tuple[dict[str, str], str | None]:
    """Return the environment with the missing secrets, and a notice for the operator.

    Raises:
        ConfigurationError: The file cannot be written or read, is readable by others, or lacks a secret.
    """
    missing = [name for name in NAMES if not environ.get(name)]
    if not missing:
        return dict(environ), None
    path = folder / FILE_NAME
    try:
        new = _generate(path)
        found = read_secrets(path)
    except OSError as error:
        raise ConfigurationError(
            f"{' and '.join(missing)} cannot be kept in {path}: {error.strerror}. Set them in the"
            " environment, or WATCHKEEPER_STATE_DIR to your own folder."
        ) from error
    lacking = [name for name in missing if not found.get(name)]
    if lacking:
        raise ConfigurationError(f"{path} lacks {' and '.join(lacking)}: restore it, or remove the file.")
    notice = f"{'generated' if new else 'using'} {' and '.join(missing)} {'in' if new else 'of'} {path}"
    return {**environ, **{name: found[name] for name in missing}}, notice


def read_secrets(path: Path) -> dict[str, str]:
    """Return the names and values in the file.

    Raises:
        ConfigurationError: Others than its owner may read it.
        OSError: It cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_mode & _MODE_OF_OTHERS:
            raise ConfigurationError(f"{path} may be read by others: chmod 600 it, and replace its secrets.")
        lines = [line.strip().partition("=") for line in file if not line.lstrip().startswith("#")]
    return {name: value for name, _, value in lines if name}


def _generate(path: Path) -> bool:
    """Write the file unless it exists; of two processes that start at once, one writes it and both use it."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp sets mode 0600, and link is atomic: no one reads half a file.
    descriptor, draft = tempfile.mkstemp(prefix=f".{FILE_NAME}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(
                "# Generated at the first start; remove it to get new ones. The environment overrides it.\n"
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

"""External programs that some tests need.

A missing program skips the test, and the reason names the package to install. With `CI` set the test fails:
`.ci/run` installs all of them, and a skipped test would go unnoticed.
"""

import os
from pathlib import Path
from typing import Final

import pytest

# Debian's package for each program, and the other names that programs have.
_PACKAGES: Final = {
    "alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
    "pgbouncer": "pgbouncer",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}
_OTHER_NAMES: Final = {
    "alertmanager": ("prometheus-alertmanager",),
    "chromium": ("chromium-browser", "google-chrome"),
}
# Daemons are here, outside an ordinary user's PATH.
_SYSTEM_FOLDERS: Final = (Path("/usr/sbin"), Path("/usr/local/sbin"))


def require_tool(name: str, *more_paths: str | Path) -> Path:
    """Find a program by its project's name, or skip or fail the test."""
    found = _find(name, more_paths)
    return found if found is not None else _give_up(name, _PACKAGES.get(name, name))


def require_postgres(major: int) -> Path:
    """Find the `bin` folder of a system PostgreSQL, or skip or fail the test as `require_tool` does."""
    places = (
        f"/usr/lib/postgresql/{major}/bin",
        f"/usr/pgsql-{major}/bin",
        f"/usr/libexec/postgresql{major}",
    )
    for place in map(Path, places):
        if (place / "initdb").is_file() and (place / "postgres").is_file():
            return place
    return _give_up(f"PostgreSQL {major}", f"postgresql-{major}")


def _find(name: str, more_paths: tuple[str | Path, ...]) -> Path | None:
    names = (name, *_OTHER_NAMES.get(name, ()))
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for place in (*folders, *_SYSTEM_FOLDERS, *map(Path, more_paths)):
        for candidate in (place, *(place / other for other in names)):
            # In this order: is_file() raises in a PATH folder that this user cannot enter.
            if os.access(candidate, os.X_OK) and candidate.is_file():
                return candidate
    return None


def _give_up(what: str, package: str) -> Path:
    reason = f"{what} is not installed: apt install {package}"
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (with CI set, a missing tool fails)", pytrace=False)
    pytest.skip(reason)

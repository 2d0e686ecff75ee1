"""Small checkouts with the real dev.py, which are set up in seconds and without a network."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
BASE_PYTHON: Final = f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
NOBODY: Final = 65534
_TIMEOUT: Final = 100

_PROJECT: Final = """\
[build-system]
requires = ["flit_core>=3.12,<5"]
build-backend = "flit_core.buildapi"

[project]
name = "{name}"
version = "7.0"
description = "A small one"
scripts = {{ {name}-program = "{module}.__main__:main" }}

[tool.flit.module]
name = "{module}"
"""
_PROGRAM: Final = '''\
"""Prints how it was started."""

import json
import sys


def main() -> None:
    """Print the arguments and the environment; with --stay, wait until stdin ends."""
    print(json.dumps({"arguments": sys.argv[1:], "prefix": sys.prefix}), flush=True)
    if "--stay" in sys.argv:
        sys.stdin.read()


if __name__ == "__main__":
    main()
'''


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkout:
    """A folder with dev.py, and the folder where pip finds the locked wheels."""

    root: Path
    wheels: Path

    def environ(self, **changes: str | None) -> dict[str, str]:
        """Return an environment with pip configured; None removes a variable."""
        home = self.wheels.parent
        settings: dict[str, str | None] = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            **changes,
        }
        return {key: value for key, value in settings.items() if value is not None}

    def start(
        self, *arguments: str, python: str = BASE_PYTHON, user: int | None = None, **changes: str | None
    ) -> subprocess.Popen[str]:
        """Start dev.py without waiting for it."""
        return subprocess.Popen(
            [python, str(self.root / "dev.py"), *arguments],
            cwd=self.root,
            env=self.environ(**changes),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=user,
            group=user,
            extra_groups=None if user is None else (),
        )

    def run(
        self, *arguments: str, python: str = BASE_PYTHON, user: int | None = None, **changes: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Run dev.py and wait for it."""
        with self.start(*arguments, python=python, user=user, **changes) as process:
            stdout, stderr = process.communicate(timeout=_TIMEOUT)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def make_checkout(folder: Path) -> Checkout:
    """Make a checkout that is not set up yet, with a folder of wheels."""
    wheels, root = folder / "wheels", folder / "checkout"
    wheels.mkdir()
    wheel = repack("flit_core", wheels)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    apps = root / "apps"
    for project, module, name in (
        (root, "small", "watchkeeper"),
        (apps / "backend", "realestate", "backend"),
        (apps / "traffic", "realestate_traffic", "traffic"),
    ):
        package = project / "src" / module
        package.mkdir(parents=True)
        (package / "__init__.py").write_text('"""A small package."""\n', encoding="utf-8")
        (package / "__main__.py").write_text(_PROGRAM, encoding="utf-8")
        (project / "pyproject.toml").write_text(_PROJECT.format(name=name, module=module), encoding="utf-8")
    pin = f"flit-core=={distribution('flit_core').version} \\\n    --hash=sha256:{digest}\n"
    for lock in ("requirements.lock", "requirements-test.lock", "requirements-bench.lock"):
        (root / lock).write_text(pin, encoding="utf-8")
    shutil.copy(ROOT / "dev.py", root)
    return Checkout(root=root, wheels=wheels)


def repack(name: str, folder: Path) -> Path:
    """Build a wheel from an installed pure Python distribution."""
    installed = distribution(name)
    path = folder / f"{name}-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file in installed.files or ():
            if "__pycache__" not in file.parts and file.name not in ("INSTALLER", "REQUESTED"):
                wheel.writestr(str(file), file.read_binary())
    return path


def python_for_others() -> str:
    """Find a Python that users other than root can run; without one, skip or fail like `require_tool`."""
    for python in (BASE_PYTHON, "/usr/bin/python3"):
        probe = [python, "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
        try:
            if (
                subprocess.run(probe, user=NOBODY, group=NOBODY, check=False, capture_output=True).returncode
                == 0
            ):
                return python
        except OSError:
            continue
    if os.environ.get("CI"):
        pytest.fail(
            "no Python with pip that users other than root may run: apt install python3-pip", pytrace=False
        )
    pytest.skip("no Python with pip that users other than root may run: apt install python3-pip")

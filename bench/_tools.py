"""The programs that the bench runs beside Python: Node with its packages, and wrk."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench._workers import Worker

NODE: Final = Path(__file__).parent / "node"
WRK: Final = "apt install wrk"
_OLDEST_NODE: Final = 20


class MissingError(Exception):
    """Something is not there; the text says what to install."""


def find_node() -> str:
    """Return Node's path, with the packages of `bench/node` installed as their lock has them.

    Raises:
        MissingError: Node or npm is missing, too old, or did not reach its registry.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise MissingError(f"install Node {_OLDEST_NODE} or newer with npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.", version)
    if found is None or int(found[1]) < _OLDEST_NODE:
        raise MissingError(f"Node {version.strip()} is too old, install {_OLDEST_NODE} or newer")
    _install(npm)
    return node


def node_worker(script: str, *arguments: str) -> Worker:
    """Start a script of `bench/node` that answers as a worker does.

    Raises:
        MissingError: Node is not there.
    """
    return Worker([find_node(), str(NODE / script), *arguments])


def find_wrk() -> str:
    """Return the path of wrk.

    Raises:
        MissingError: It is not installed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise MissingError(WRK)
    return wrk


def _install(npm: str) -> None:
    installed = NODE / "node_modules" / ".package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= (NODE / "package-lock.json").stat().st_mtime:
        return
    finished = subprocess.run(
        [npm, "ci", "--loglevel=error"], cwd=NODE, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        last = (finished.stderr.strip() or "it says nothing").splitlines()[-1]
        raise MissingError(f"npm ci failed in {NODE}: {last}")

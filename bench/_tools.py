"""The programs other than Python that the bench needs: Node with its packages, and wrk."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench._workers import Worker

NODE: Final = Path(__file__).parent / "node"
WRK: Final = "apt install wrk"
_MIN_NODE: Final = 20


class MissingError(Exception):
    """A program is missing; the message says what to install."""


def find_node() -> str:
    """Return the path of Node, after installing the locked packages of `bench/node`.

    Raises:
        MissingError: Node or npm is missing or too old, or npm could not reach its registry.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise MissingError(f"install Node {_MIN_NODE} or newer with npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.", version)
    if found is None or int(found[1]) < _MIN_NODE:
        raise MissingError(f"Node {version.strip()} is too old, install {_MIN_NODE} or newer")
    _install(npm)
    return node


def node_worker(script: str, *arguments: str) -> Worker:
    """Start a script of `bench/node` as a worker; MissingError if Node is missing."""
    return Worker([find_node(), str(NODE / script), *arguments])


def find_wrk() -> str:
    """Return the path of wrk; MissingError if it is not installed."""
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
        last = (finished.stderr.strip() or "no message").splitlines()[-1]
        raise MissingError(f"npm ci failed in {NODE}: {last}")

"""Processes that measure one variant each, and only while they are asked to.

A worker is started with the name of a function and its arguments. The function sets the variant up and
returns a function that answers questions. Questions and answers are JSON lines, one at a time, so no two
variants run at once.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_Name = TypeVar("_Name")


class WorkerError(Exception):
    """A worker ended before it answered; its message is on stderr."""


class Worker:
    """A process and the pipe to it.

    Args:
        command: The program: it prints one line when it is ready, then answers each line on stdin with one
            line of JSON on stdout.
        environ: Environment variables to set for it.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
        )
        self._ready = False

    @classmethod
    def of(
        cls, function: Callable[..., Any], *arguments: object, environ: Mapping[str, str] | None = None
    ) -> Self:
        """Start a worker that is set up by `function`, which is in a module of this package."""
        target = f"{function.__module__}:{function.__name__}"
        return cls([sys.executable, "-m", "bench._workers", target, json.dumps(arguments)], environ)

    def ask(self, question: object = None) -> Any:
        """Send a question and wait for the answer; WorkerError if the worker has ended."""
        if not self._ready:
            self._read()
            self._ready = True
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise WorkerError(f"a process of the bench ended too early: {self._process.args!r}")
        return json.loads(line)


@contextlib.contextmanager
def workers(started: Mapping[_Name, Worker]) -> Iterator[Mapping[_Name, Worker]]:
    """End all workers when the block ends."""
    try:
        yield started
    finally:
        for worker in started.values():
            worker.close()


def main(target: str, arguments: str) -> None:
    """Set up the variant that `target` names, then answer questions until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its stdin
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # log lines are written and discarded
    module, function = target.split(":")
    answer = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    print("null", file=answers, flush=True)
    for question in sys.stdin:
        print(json.dumps(answer(json.loads(question))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

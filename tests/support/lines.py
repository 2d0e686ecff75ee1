"""Reading log lines the way a strict consumer does."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from watchkeeper.logs.output._sink import Sink

if TYPE_CHECKING:
    from pathlib import Path


def parse_line(line: bytes | str) -> dict[str, Any]:
    """Return one line as an object; what is not strict JSON (NaN, a key twice, invalid UTF-8) fails."""
    text = line.decode("utf-8", "strict") if isinstance(line, bytes) else line
    parsed = json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_duplicates)
    assert isinstance(parsed, dict)
    return parsed


def parse_lines(output: bytes) -> list[dict[str, Any]]:
    """Return all lines of an output; each must be whole, and JSON by itself."""
    if not output:
        return []
    assert output.endswith(b"\n")
    return [parse_line(line) for line in output[:-1].split(b"\n")]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """Return `error` as it is when it was raised: with a traceback."""
    try:
        if cause is not None:
            error.__cause__ = cause
        raise error  # noqa: TRY301 - a traceback is all that is wanted
    except BaseException as caught:  # noqa: BLE001 - whatever was handed in
        return caught


class LineList(Sink):
    """A sink that keeps its lines, for tests in which a file would be too slow."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[bytes] = []

    def _add(self, lines: bytes) -> None:
        self.lines.append(lines)


class LineFile:
    """A sink into a file, and the lines that have arrived there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.sink = Sink(self._fd)

    def read(self) -> list[dict[str, Any]]:
        """Return every line so far."""
        self.sink.flush()
        return parse_lines(self._path.read_bytes())

    def raw(self) -> str:
        """Return the output as it is."""
        self.sink.flush()
        return self._path.read_text()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

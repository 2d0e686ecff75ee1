"""Log lines: strict parsing, sinks that keep them, and a request line to log."""

import json
import os
from pathlib import Path
from typing import Any

from watchkeeper.logs._request_line import RequestLine
from watchkeeper.logs.output._sink import Sink


def parse_line(line: bytes | str) -> dict[str, Any]:
    """Return one line as an object; anything but strict JSON (NaN, a duplicate key, invalid UTF-8) fails."""
    text = line.decode("utf-8", "strict") if isinstance(line, bytes) else line
    parsed = json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_duplicates)
    assert isinstance(parsed, dict)
    return parsed


def parse_lines(output: bytes) -> list[dict[str, Any]]:
    """Return all lines of an output; each must be whole and valid JSON."""
    if not output:
        return []
    assert output.endswith(b"\n")
    return [parse_line(line) for line in output[:-1].split(b"\n")]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


def request_line(**changes: Any) -> RequestLine:
    """Return the line of a request, with these changes."""
    fields: dict[str, Any] = {
        "method": "GET",
        "url": "/api/listings/7",
        "status": 200,
        "duration": 12.345,
        "request_id": "r-1",
        "route": "/api/listings/{id}",
        "outcome": "completed",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "b7ad6b7169203331",
        "bytes_sent": 512,
    }
    return RequestLine(**fields | changes)


def documented_request_line(line: dict[str, Any]) -> RequestLine:
    """Return the request whose line a page of the docs shows."""
    return RequestLine(
        method=line["method"],
        url=line["url"],
        status=line["statusCode"],
        duration=line["duration"],
        request_id=line["requestId"],
        route=line["route"],
        outcome=line["outcome"],
        trace_id=line["trace_id"],
        span_id=line["span_id"],
        bytes_sent=line["bytes"],
    )


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """Return `error` with a traceback, as if it had been raised here."""
    try:
        if cause is not None:
            error.__cause__ = cause
        raise error  # noqa: TRY301 - to get a traceback
    except BaseException as caught:  # noqa: BLE001 - it is `error`
        return caught


class LineList(Sink):
    """A sink that keeps its lines in memory, for tests in which a file would be too slow."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[bytes] = []

    def _add(self, lines: bytes) -> None:
        self.lines.append(lines)


class LineFile:
    """A sink that writes to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.sink = Sink(self._fd)

    def read(self) -> list[dict[str, Any]]:
        """Return all lines."""
        self.sink.flush()
        return parse_lines(self._path.read_bytes())

    def raw(self) -> str:
        """Return the output as text."""
        self.sink.flush()
        return self._path.read_text()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

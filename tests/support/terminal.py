"""Commands as an operator runs them: in a pipe, or on a terminal with input."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.retention import RetentionDB

ROOT: Final = Path(__file__).parents[2]
GOLDEN: Final = ROOT / "tests/golden"
PROGRAM: Final = "import sys; from watchkeeper.cli import main; sys.exit(main())"

_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_CHANGING: Final = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d UTC)?"), "<time>"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)"), "<time>"),
    (re.compile(r"in \d+\.\d (s|min)"), "in <duration>"),
    (re.compile(r"\b\d\.\d s\b"), "0.0 s"),  # of constant width, so that columns do not move
    (re.compile(r'("duration_ms"|"duration_seconds"): [\d.]+'), r"\1: <duration>"),
    (re.compile(r"wk_\d+"), "<database>"),
    (re.compile(r'"version": "[^"]+"'), '"version": "<version>"'),
    (re.compile(r'"bytes": \d+'), '"bytes": <bytes>'),
    (re.compile(r"PostgreSQL \d+\.\d+( \([^)]*\))?"), "PostgreSQL <version>"),
    (re.compile(r"[\d.]+ MiB"), "<size>"),
    (re.compile(r"[\d,]+ bytes"), "<bytes>"),
    (re.compile(r"[\d,]+ rows/s"), "<rate>"),
    (re.compile(r'"rows_per_second": [\d.]+'), '"rows_per_second": <rate>'),
    (re.compile(r'"dead_rows": \d+'), '"dead_rows": <dead>'),
    (re.compile(r"[\d,]+ dead rows"), "<dead> dead rows"),
    (re.compile(r" +\d+( +- +(-|<time>) +autovacuum is off)"), r" <dead>\1"),
    (re.compile(r"\b\d\.\d s\b"), "<took>"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def run_command(
    db: RetentionDB, *arguments: str, environ: Mapping[str, str] | None = None, read: bool = True
) -> Answer:
    """Run `watchkeeper` with these arguments in a pipe; with `read=False` its stdout is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(db), **(environ or {})},
        cwd=ROOT / "tests",
        text=True,
    ) as process:
        if not read:
            assert process.stdout is not None
            process.stdout.close()
        out, err = process.communicate(timeout=60)
    return Answer(code=process.returncode, out=out or "", err=err)


class Terminal:
    """A command on a terminal of 120 columns."""

    def __init__(
        self,
        db: RetentionDB,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        keep_escapes: bool = False,
    ) -> None:
        self._keep_escapes = keep_escapes
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment(db), "TERM": "xterm-256color", **(environ or {})},
            cwd=ROOT / "tests",
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - so that Ctrl-C sends a signal
        )
        os.close(slave)
        self._seen = ""

    def wait_for(self, text: str) -> None:
        """Read until the text is on the screen."""
        until = time.monotonic() + 30
        while text not in self._seen:
            assert time.monotonic() < until, self._seen
            assert self._read(), self._seen

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def end(self) -> Answer:
        """Wait for the end of the command, and return the whole screen."""
        while self._read():
            pass
        code = self._process.wait(30)
        os.close(self._master)
        return Answer(code=code, out=self._seen, err="")

    def _read(self) -> bool:
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        text = piece.decode(errors="replace")
        self._seen += (text if self._keep_escapes else _ESCAPES.sub("", text)).replace("\r\n", "\n")
        return bool(piece)


def environment(db: RetentionDB) -> dict[str, str]:
    """Return the variables of a command's process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "WATCHKEEPER"))}
    return {
        **kept,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}",
        "WATCHKEEPER_APP": "support.service:keeper",
        "TEST_URL": db.urls.url,
        "TEST_OWNER_URL": db.urls.owner_url,
        "TEST_STATE": str(db.folder),
        "COLUMNS": "120",
    }


def check_golden(name: str, *transcript: tuple[str, Answer]) -> None:
    """Compare commands and their answers with a golden file; `GOLDEN=write` rewrites it."""
    parts = [
        f"$ watchkeeper {command}\n{_steady(answer.out)}[{answer.code}]\n" for command, answer in transcript
    ]
    text = "\n".join(parts)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


def _steady(text: str) -> str:
    for pattern, replacement in _CHANGING:
        text = pattern.sub(replacement, text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())

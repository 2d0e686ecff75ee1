"""Tables, progress bars and text of the command-line interface."""

import builtins
import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from watchkeeper.cli._screen import Screen, open_screen
from watchkeeper.cli._text import format_bytes, format_days, format_duration, format_rows, printable
from watchkeeper.retention._model import Pressure

ROWS = [["inbound_events", "2026-11-23 15:48", "x" * 50], ["chat_sessions", "-", "short"]]


class Terminal(io.StringIO):
    """A file that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def screen(width: int) -> tuple[Screen, Terminal]:
    """Return a screen with this many columns, and its output."""
    out = Terminal()
    return Screen(out, zone="UTC", json=False, console=Console(file=out, width=width, color_system=None)), out


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1.0 min"), (3599, "60.0 min"), (3600, "1.0 h")),
        (90_000, "25.0 h"),
    ],
)
def test_format_duration(seconds: float, said: str) -> None:
    """A duration is in seconds, minutes or hours."""
    assert format_duration(timedelta(seconds=seconds)) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (5 << 20, "5 MiB"),
        (7 << 30, "7 GiB"),
        (3 << 39, "1.5 TiB"),
    ],
)
def test_format_bytes(count: int, said: str) -> None:
    """A size is in the largest unit that fits."""
    assert format_bytes(count) == said


@pytest.mark.parametrize(("span", "said"), [(1, "1 day"), (30, "30 days"), (1.5, "1.5 days")])
def test_format_days(span: float, said: str) -> None:
    """A duration in days may be a fraction."""
    assert format_days(timedelta(days=span)) == said


def test_last_column_is_folded_at_the_edge_of_the_terminal() -> None:
    """The others stay on one line."""
    wide, out = screen(70)
    wide.write_table("Things", ("Table", "When", "What"), ROWS)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 70
    assert [line.split() for line in lines if "events" in line] == [
        ["inbound_events", "2026-11-23", "15:48", "x" * 29]
    ]
    assert out.getvalue().count("x") == 50  # folded, not cut


def test_narrow_terminal_gets_lines_instead_of_a_table() -> None:
    """Nothing is cut."""
    narrow, out = screen(36)
    narrow.write_table("Things", ("Table", "#When", "What"), ROWS)
    assert out.getvalue().splitlines() == [
        f"table inbound_events: when 2026-11-23 15:48, what {'x' * 50}",
        "table chat_sessions: when -, what short",
    ]
    narrow, out = screen(36)
    narrow.write_table("Things", ("Table", "#When", "What"), [["inbound_events", "2026-11-23 15:48", ""]])
    assert out.getvalue() == "table inbound_events: when 2026-11-23 15:48\n"


def test_table_without_rows_has_headings() -> None:
    """An empty audit log is not an error."""
    empty, out = screen(70)
    empty.write_table("Things", ("#Id", "What"), [])
    assert ["Id", "What"] in [line.split() for line in out.getvalue().splitlines()]


def test_progress_of_an_unplanned_policy_gets_a_bar() -> None:
    """Its plan had a problem that was fixed before its run."""
    shown, out = screen(100)
    with shown.progress({"planned": 10}) as bars:
        assert bars is not None
        bars.deleted("planned", 4)
        bars.deleted("surprise", 7)
        bars.deleted("surprise", 1)
    assert "4/10" in out.getvalue()
    assert "8/?" in out.getvalue()


def test_progress_shows_what_a_run_waits_for() -> None:
    """The details are printed above the bars, escaped; the reason disappears when the run continues."""
    shown, out = screen(100)
    with shown.progress({"planned": 10}) as bars:
        assert bars is not None
        bars.waiting("planned", 1, Pressure(reason="vacuum", detail="[b]900 dead\x1b rows"))
        bars.resumed("planned", 1, "vacuum", timedelta(seconds=1))
    assert "planned waits: [b]900 dead\\u001b rows" in out.getvalue()
    assert "waits: vacuum" not in out.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b é 漢 🏠", "a b é 漢 🏠"),
        ("\x1b[2J", "\\u001b[2J"),
        ("line\nbreak\t\x7f\x9b", "line\\u000abreak\\u0009\\u007f\\u009b"),
        ("\u202eturned\u2066", "\\u202eturned\\u2066"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    """Other characters stay as they are."""
    assert printable(text) == shown


def test_terminal_without_rich_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command requires the extra."""
    real: Callable[..., Any] = builtins.__import__

    def without_rich(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("rich"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("watchkeeper.cli._screen.os.fdopen", lambda *_args, **_options: Terminal())
    with open_screen(zone="UTC", json=False) as plain:
        assert plain.terminal is False


@pytest.mark.parametrize(("count", "text"), [(0, "0 rows"), (1, "1 row"), (1200, "1,200 rows")])
def test_format_rows(count: int, text: str) -> None:
    """The noun agrees with the number."""
    assert format_rows(count) == text

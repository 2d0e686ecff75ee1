"""What the commands write, and how they write it."""

from __future__ import annotations

import builtins
import io
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from watchkeeper.cli._screen import Screen, days, duration, open_screen, printable, volume
from watchkeeper.retention._model import Pressure

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = [["inbound_events", "2026-11-23 15:48", "x" * 50], ["chat_sessions", "-", "short"]]


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def screen(width: int) -> tuple[Screen, Terminal]:
    """Return a screen of so many columns, and what is on it."""
    out = Terminal()
    return Screen(out, zone="UTC", json=False, console=Console(file=out, width=width, color_system=None)), out


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1.0 min"),
        (3599, "60.0 min"),
        (3600, "1.0 h"),
        (90_000, "25.0 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    """Seconds, minutes and hours, as one would say it."""
    assert duration(timedelta(seconds=seconds)) == said


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
def test_volumes(count: int, said: str) -> None:
    """Bytes in the unit that leaves a short number."""
    assert volume(count) == said


@pytest.mark.parametrize(("span", "said"), [(1, "1 day"), (30, "30 days"), (1.5, "1.5 days")])
def test_days(span: float, said: str) -> None:
    """How long rows are kept."""
    assert days(timedelta(days=span)) == said


def test_the_last_column_gives_way_where_the_terminal_ends() -> None:
    """The others are whole, on one line each."""
    wide, out = screen(70)
    wide.table("Things", ("Table", "When", "What"), ROWS)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 70
    assert [line.split() for line in lines if "events" in line] == [
        ["inbound_events", "2026-11-23", "15:48", "x" * 29]
    ]
    assert out.getvalue().count("x") == 50  # on the next line, and not cut


def test_a_terminal_that_is_too_narrow_gets_text() -> None:
    """It breaks its lines by itself, and nothing is lost."""
    narrow, out = screen(36)
    narrow.table("Things", ("Table", "#When", "What"), ROWS)
    assert out.getvalue().splitlines() == [
        f"table inbound_events: when 2026-11-23 15:48, what {'x' * 50}",
        "table chat_sessions: when -, what short",
    ]
    narrow, out = screen(36)
    narrow.table("Things", ("Table", "#When", "What"), [["inbound_events", "2026-11-23 15:48", ""]])
    assert out.getvalue() == "table inbound_events: when 2026-11-23 15:48\n"


def test_a_table_without_rows_has_its_heads() -> None:
    """An empty audit log is no error."""
    empty, out = screen(70)
    empty.table("Things", ("#Id", "What"), [])
    assert ["Id", "What"] in [line.split() for line in out.getvalue().splitlines()]


def test_a_bar_is_there_also_for_what_was_not_planned() -> None:
    """A table that could be pruned after all, although its plan said no."""
    shown, out = screen(100)
    with shown.progress({"planned": 10}) as bars:
        assert bars is not None
        bars.advance("planned", 4)
        bars.advance("surprise", 7)
        bars.advance("surprise", 1)
    assert "4/10" in out.getvalue()
    assert "8/?" in out.getvalue()


def test_a_bar_that_waits_says_for_what() -> None:
    """The details stand above the bars, whatever is in them; a bar that goes on waits no more."""
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
def test_text_does_not_steer_the_terminal(text: str, shown: str) -> None:
    """What could is shown as its number."""
    assert printable(text) == shown


def test_without_rich_a_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra makes it nicer; nothing needs it."""
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

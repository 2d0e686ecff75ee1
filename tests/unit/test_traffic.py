import io
import random
from pathlib import Path

import pytest
from rich.console import Console

from realestate_traffic import screen
from realestate_traffic.__main__ import credentials, main
from realestate_traffic.compare import Samples, compare
from realestate_traffic.player import Player, RunParameters
from realestate_traffic.tally import Tally, series
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.settings import Settings

SECRETS = {"SERVICE_TOKEN": "token", "WEBHOOK_SECRETS": "moltbot=new,moltbot=old,crm=other"}


def _tally() -> Tally:
    return Tally(sources={"moltbot"})


def test_only_what_the_service_counts_is_expected() -> None:
    """Refused deliveries of known sources, calls with the token and refused codes count; nothing else."""
    tally = _tally()
    for status in (200, 401, 413, 503):
        tally.webhook("moltbot", status)
    tally.webhook("unknown", 404)
    for status in (200, 400, 401, 503):
        tally.tool("listing.search", status)
    tally.tool("listing.demolish", 404)
    for status in (200, 403, 404, 410, 429):
        tally.pairing("telegram", status)
    assert tally.expected == {
        series("webhook_failures_total", source="moltbot"): 3,
        series("tool_calls_total", tool="listing.search", status="ok"): 1,
        series("tool_calls_total", tool="listing.search", status="rejected"): 1,
        series("tool_calls_total", tool="listing.search", status="error"): 1,
        series("tool_call_duration_ms_count", tool="listing.search"): 3,
        series("pairing_failures_total", channel="telegram"): 3,
    }


def _scrapes(requests: float, sessions: float) -> tuple[Samples, Samples]:
    key = series("http_requests_total", method="GET", route="/x", status="200")
    probes = series("http_requests_total", method="GET", route="/health", status="200")
    gauge = series("active_sessions")
    return {key: 10.0, gauge: 2.0}, {key: 10.0 + requests, probes: 99.0, gauge: sessions}


def test_equal_counts_agree() -> None:
    """Both counted the same since the first scrape; probes of others do not matter."""
    tally = _tally()
    tally.answered("GET", "/x", 200, 0.01)
    tally.sessions.add(("telegram", "a"))
    rows = {row.name: row for row in compare(*_scrapes(1, 3), tally)}
    assert rows["http_requests_total"].agrees
    assert rows["http_requests_total"].moved
    assert rows["active_sessions"].agrees
    assert not rows["http_request_duration_ms_count"].agrees  # the service exposes no such series
    assert not rows["webhook_failures_total"].moved


@pytest.mark.parametrize(("requests", "sessions"), [(2, 3), (0, 3), (1, 0), (1, 9)])
def test_counts_that_differ_are_named(requests: float, sessions: float) -> None:
    """One request or session more or less is reported with its series."""
    tally = _tally()
    tally.answered("GET", "/x", 200, 0.01)
    tally.sessions.add(("telegram", "a"))
    rows = {row.name: row for row in compare(*_scrapes(requests, sessions), tally)}
    wrong = [
        row
        for name, row in rows.items()
        if name in {"http_requests_total", "active_sessions"} and not row.agrees
    ]
    assert len(wrong) == 1
    assert "counted 1" in wrong[0].differing[0] or "touched 1" in wrong[0].differing[0]


def test_screens_show_figures_and_verdict() -> None:
    """The live screen, its one-line form and the result name what was counted."""
    tally = _tally()
    for status in (200, 404, 503):
        tally.answered("GET", "/x", status, 0.25)
    tally.actions["scan"] = 3
    tally.unanswered["ReadTimeout"] = 1
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(screen.live(tally, 1.5))
    console.print(screen.comparison(compare(*_scrapes(1, 0), tally)))
    assert "3 requests   2.0/s   p50 250.0 ms" in out.getvalue()
    assert "ReadTimeout" in out.getvalue()
    assert "http_request_duration_ms_count" in out.getvalue()
    assert screen.line(tally, 1.5) == "2 s  3 requests  p95 250.0 ms  200:1 404:1 503:1"
    assert screen.line(_tally(), 0).startswith("0 s  0 requests  p95 0.0 ms")


class _Odd:
    """Scenarios of which one fails."""

    def __init__(self) -> None:
        self.done = 0
        self.good = {self.work: 1}
        self.faults = {self.fail: 1}

    async def work(self) -> None:
        self.done += 1

    async def fail(self) -> None:
        raise KeyError("an answer of another shape")


async def test_a_play_keeps_its_rate_and_survives_failures() -> None:
    """Actions start at the rate, and failures are counted by name."""
    tally, scenarios = _tally(), _Odd()
    parameters = RunParameters(rate=200, faults=0.5, seconds=0.5)
    player = Player(parameters, scenarios, tally, random.Random(7))  # type: ignore[arg-type]
    await player.run()
    assert 50 <= tally.actions.total() <= 140
    assert tally.actions["work"] == scenarios.done
    assert tally.unanswered["fail: KeyError"] == tally.actions["fail"] > 0


async def test_a_play_without_an_end_is_stopped() -> None:
    """Stop ends a run without a duration."""
    player = Player(RunParameters(rate=1, faults=0, seconds=None), _Odd(), _tally(), random.Random(7))  # type: ignore[arg-type]
    player.stop()
    await player.run()


def test_credentials_come_from_the_environment_or_the_state_folder(tmp_path: Path) -> None:
    """The environment overrides the file of `serve`; the first of two secrets signs."""
    settings = Settings(service="realestate-backend", state_dir=tmp_path)
    found = credentials(SECRETS, settings)
    assert found.service_token == "token"
    assert found.webhook_secrets == {"moltbot": "new", "crm": "other"}
    with pytest.raises(ConfigurationError, match="start the service first"):
        credentials({}, settings)
    settings.service_dir.mkdir()
    file = settings.service_dir / "secrets.env"
    file.write_text("SERVICE_TOKEN=kept\nWEBHOOK_SECRETS=moltbot=kept\n")
    file.chmod(0o600)
    assert credentials({"SERVICE_TOKEN": "mine"}, settings).service_token == "mine"
    assert credentials({}, settings).webhook_secrets == {"moltbot": "kept"}
    file.write_text("SERVICE_TOKEN=kept\n")
    with pytest.raises(ConfigurationError, match="are both needed"):
        credentials({}, settings)


@pytest.mark.parametrize("argument", ["--rate=0", "--rate=x", "--faults=1.5", "--seconds=-1"])
def test_an_invalid_argument_is_a_usage_error(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 2."""
    with pytest.raises(SystemExit, match="2"):
        main([argument])
    assert "usage: traffic" in capsys.readouterr().err


def test_a_service_that_does_not_answer_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says how to start one."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert main(["--url", "http://127.0.0.1:9", "--seconds", "1"]) == 1
    assert "start it with `python3 dev.py serve`" in capsys.readouterr().err

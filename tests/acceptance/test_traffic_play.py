import os
import subprocess
import sys

from support.backend import SECRET, SOURCE, TOKEN, Program


def _play(program: Program, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ,
        "SERVICE_TOKEN": TOKEN,
        "WEBHOOK_SECRETS": f"{SOURCE}={SECRET}",
        "COLUMNS": "120",
    }
    command = [sys.executable, "-m", "realestate_traffic", "--url", program.url, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=110, check=False)


def test_the_metrics_agree_exactly_with_the_client(program: Program) -> None:
    """After real traffic, half of it bad, every metric has moved and every series agrees."""
    done = _play(program, "--seconds", "12", "--rate", "40", "--faults", "0.5", "--seed", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " no " not in done.stdout
    assert "requests" in done.stdout
    lines = [line for line in program.lines if line.get("type") == "request"]
    # No request of a client is a 5xx, and every request is one line.
    assert [line for line in lines if line["statusCode"] >= 500] == []
    assert len({line["requestId"] for line in lines}) == len(lines)
    assert len(lines) > 100


def test_a_play_without_faults_reports_metrics_that_did_not_move(program: Program) -> None:
    """A metric that was never incremented is not reported as working."""
    done = _play(program, "--seconds", "2", "--rate", "10", "--faults", "0")
    assert done.returncode == 1
    assert any("pairing_failures_total" in line and " no " in line for line in done.stdout.splitlines())

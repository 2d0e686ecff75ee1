"""The shipped configuration files, checked by promtool, amtool and a real Alertmanager."""

import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.prometheus import MONITORING, alertmanager_variant, run_tool, running_alertmanager, wait_until

JOB = {"job": "realestate-backend"}


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    """`promtool check config` finds nothing if the token's file exists."""
    shutil.copytree(MONITORING, tmp_path / "monitoring", ignore=shutil.ignore_patterns("secrets"))
    (tmp_path / "monitoring/secrets").mkdir()
    (tmp_path / "monitoring/secrets/metrics_token").write_text("a-token", encoding="utf-8")
    code, output = run_tool("promtool", "check", "config", "prometheus.yml", folder=tmp_path / "monitoring")
    assert code == 0, output
    assert "1 rule files found" in output


def test_promtool_names_a_missing_token_file(tmp_path: Path) -> None:
    """The check shows a missing file before the backend refuses Prometheus."""
    shutil.copytree(MONITORING, tmp_path / "monitoring", ignore=shutil.ignore_patterns("secrets"))
    code, output = run_tool("promtool", "check", "config", "prometheus.yml", folder=tmp_path / "monitoring")
    assert code == 1
    assert "secrets/metrics_token" in output


def test_amtool_accepts_the_configuration() -> None:
    """`amtool check-config` finds nothing."""
    code, output = run_tool("amtool", "check-config", "alertmanager.yml", folder=MONITORING)
    assert code == 0, output
    assert "SUCCESS" in output


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=HighErrorRate", "severity=critical"), "on-call"),
        (("alertname=HighToolLatency", "severity=warning"), "team"),
        (("alertname=Watchdog", "severity=none"), "dead-man-switch"),
        (("alertname=SomethingElse",), "team"),
    ],
)
def test_an_alert_goes_to_its_receiver(labels: tuple[str, ...], receiver: str) -> None:
    """Critical alerts go to on-call, others to the team, and the heartbeat to an outside service."""
    code, output = run_tool(
        "amtool",
        "config",
        "routes",
        "test",
        "--config.file=alertmanager.yml",
        f"--verify.receivers={receiver}",
        *labels,
        folder=MONITORING,
    )
    assert code == 0, output


def test_causes_inhibit_their_effects_and_nothing_else(tmp_path: Path) -> None:
    """A real Alertmanager that has all alerts at once inhibits exactly those that another one explains."""
    a, b = {**JOB, "instance": "a"}, {**JOB, "instance": "b"}
    alerts = [
        {"alertname": "TargetDown", "severity": "critical", **a},
        {"alertname": "TargetFlapping", "severity": "warning", **a},
        {"alertname": "MetricsMissing", "severity": "warning", **a},
        {"alertname": "TargetFlapping", "severity": "warning", **b},
        {"alertname": "DatabaseDown", "severity": "critical", **b},
        {"alertname": "HighErrorRate", "severity": "critical", "scope": "total", **JOB},
        {"alertname": "HighWebhookFailures", "severity": "warning", "scope": "total", **JOB},
        {"alertname": "RetentionFailed", "severity": "warning", "table": "t", **JOB},
        {"alertname": "RetentionOverdue", "severity": "warning", "table": "t", **JOB},
        {"alertname": "RepeatedPairingFailures", "severity": "warning", **JOB},
        {"alertname": "HighErrorRate", "severity": "critical", "job": "other"},
        {"alertname": "ErrorBudgetBurn", "severity": "critical", "job": "other"},
        {"alertname": "TargetAbsent", "severity": "critical", "job": "third"},
        {"alertname": "RetentionOverdue", "severity": "warning", "job": "third"},
        {"alertname": "ErrorBudgetBurn", "severity": "critical", "job": "fourth"},
        {"alertname": "ErrorBudgetBurn", "severity": "warning", "job": "fourth"},
        {"alertname": "Watchdog", "severity": "none"},
        {"alertname": "RetentionBacklog", "severity": "warning", "table": "t", **JOB},
        {"alertname": "RetentionBacklog", "severity": "warning", "table": "other", **JOB},
    ]
    config = alertmanager_variant(tmp_path / "alertmanager", "127.0.0.1:9", "a-token")
    with running_alertmanager(config) as alertmanager:
        now = datetime.now(UTC)
        body = [
            {"labels": labels, "startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat()}
            for labels in alerts
        ]
        assert alertmanager.post("/api/v2/alerts", json=body).status_code == 200

        def inhibited() -> list[dict[str, str]]:
            found = [
                alert["labels"]
                for alert in alertmanager.get("/api/v2/alerts").json()
                if alert["status"]["inhibitedBy"]
            ]
            return sorted(found, key=lambda labels: tuple(sorted(labels.items())))

        expected = [
            alerts[index]
            for index in (1, 2, 5, 6, 7, 11, 13, 15, 17)  # in the order of the list above
        ]
        expected.sort(key=lambda labels: tuple(sorted(labels.items())))
        wait_until(lambda: len(inhibited()) >= len(expected), "inhibited alerts")
        time.sleep(0.3)  # an inhibition too many would appear now
        assert inhibited() == expected

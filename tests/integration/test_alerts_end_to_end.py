"""From a counter to the delivered message: real Prometheus, real Alertmanager, real HTTP at both ends.

Changed from the shipped files: addresses, 1 s between scrapes and evaluations, `for` 0 s, no waiting in
Alertmanager. Expressions, windows, thresholds, labels, routes and inhibitions are as shipped.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml

from support.metrics import ScrapedRegistry
from support.prometheus import (
    MONITORING,
    MetricsServer,
    Prometheus,
    Receiver,
    alertmanager_variant,
    exporting,
    receiving,
    running_alertmanager,
    running_prometheus,
    variant,
    wait_until,
)
from watchkeeper.metrics import Counter, Gauge
from watchkeeper.metrics._http import HttpMetrics

TABLES = ("inbound_events", "chat_sessions")
RUNBOOK_BASE = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))["global"][
    "external_labels"
]["runbook_base"]


class Service:
    """A service's metrics, declared as the backend declares them, set by the test."""

    def __init__(self) -> None:
        self.registry = registry = ScrapedRegistry()
        self.http = HttpMetrics(registry, unit="ms")
        sources = [{"source": "moltbot"}]
        self.webhook_failures: Counter = registry.counter(
            "webhook_failures_total", "Webhooks refused or not stored.", ("source",), known=sources
        )
        registry.counter("pairing_failures_total", "Pairings.", ("channel",), known=[{"channel": "telegram"}])
        registry.counter("log_records_dropped_total", "Lines.", ("reason",), known=[{"reason": "closed"}])
        registry.histogram(
            "tool_call_duration_ms",
            "Tool calls.",
            ("tool",),
            buckets=(50, 5000, 10000),
            known=[{"tool": "listing.search"}],
        )
        self.db_up: Gauge = registry.gauge("db_up", "Whether the database answers.")
        self.db_up.set(1)
        registry.gauge("metrics_start_time_seconds", "Began.").set(time.time())
        since = registry.gauge("retention_policy_since_timestamp_seconds", "Declared.", ("table",), known=())
        for table in TABLES:
            since.labels(table=table).set(time.time())
        self.http.record("GET", "/metrics", 200, 0.001)


@dataclass
class Chain:
    """All of it, running."""

    service: Service
    exporter: MetricsServer
    prometheus: Prometheus
    alertmanager: httpx.Client
    receiver: Receiver


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """Run the chain once for the tests of this file; Prometheus takes 5 s to find its peers."""
    folder = tmp_path_factory.mktemp("chain")
    service = Service()
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(receiving())
        am_config = alertmanager_variant(folder / "alertmanager", receiver.address, "the-receivers-token")
        alertmanager = stack.enter_context(running_alertmanager(am_config))
        exporter = stack.enter_context(exporting(service.registry, "the-scrape-token"))
        config = variant(
            folder / "prometheus",
            target=exporter.address,
            token=exporter.token,
            alertmanager=f"{alertmanager.base_url.host}:{alertmanager.base_url.port}",
        )
        prometheus = stack.enter_context(running_prometheus(config, "--rules.alert.resend-delay=1s"))
        wait_until(lambda: 1.0 in prometheus.query('up{job="realestate-backend"}').values(), "target up")
        yield Chain(service, exporter, prometheus, alertmanager, receiver)


def test_shipped_rules_load(chain: Chain) -> None:
    """Prometheus has every rule, and has evaluated each without an error."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    written = sum(len(group["rules"]) for group in groups)

    def evaluated() -> Any:
        rules = chain.prometheus.rules()
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = wait_until(evaluated, "evaluation of every rule")
    assert len(rules) == written
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_alerts_reach_their_receivers_and_resolve(chain: Chain) -> None:
    """From a healthy service over refused webhooks and a lost database to a service that is down."""
    service, receiver = chain.service, chain.receiver

    watchdog = wait_until(lambda: receiver.alerts("/dead-man-switch"), "Watchdog")
    assert watchdog[0]["labels"] == {"alertname": "Watchdog", "severity": "none"}
    # TargetAbsent, with its `for` cut, fires until the first scrape.
    wait_until(lambda: chain.prometheus.firing() == {"Watchdog"}, "silence but for the Watchdog")

    service.webhook_failures.labels(source="moltbot").inc(25)
    arrived = wait_until(lambda: receiver.alerts("/team"), "message to the team")
    assert arrived[0]["labels"] == {
        "alertname": "HighWebhookFailures",
        "job": "realestate-backend",
        "scope": "source",
        "severity": "warning",
        "source": "moltbot",
    }
    assert arrived[0]["annotations"]["runbook_url"] == f"{RUNBOOK_BASE}#highwebhookfailures"
    assert " webhook failures from moltbot in 5 min" in arrived[0]["annotations"]["summary"]

    service.db_up.set(0)
    arrived = wait_until(lambda: receiver.alerts("/on-call"), "message to who is on call")
    assert arrived[0]["labels"]["alertname"] == "DatabaseDown"
    assert arrived[0]["labels"]["instance"] == chain.exporter.address
    assert arrived[0]["annotations"]["runbook_url"] == f"{RUNBOOK_BASE}#databasedown"
    wait_until(lambda: suppressed(chain.alertmanager) == {"HighWebhookFailures"}, "inhibited alert")

    service.db_up.set(1)
    ended = wait_until(lambda: receiver.alerts("/on-call", "resolved"), "message that it is over")
    assert ended[0]["labels"]["alertname"] == "DatabaseDown"

    chain.exporter.stop()
    wait_until(lambda: "TargetDown" in names(receiver.alerts("/on-call")), "message that the target is down")
    assert {header for _, header, _ in receiver.received} == {"Bearer the-receivers-token"}


def suppressed(alertmanager: httpx.Client) -> set[str]:
    """Return the names of the alerts that Alertmanager suppresses."""
    alerts = alertmanager.get("/api/v2/alerts").json()
    return {alert["labels"]["alertname"] for alert in alerts if alert["status"]["inhibitedBy"]}


def names(alerts: list[dict[str, Any]]) -> set[str]:
    """Return the names of these alerts."""
    return {alert["labels"]["alertname"] for alert in alerts}

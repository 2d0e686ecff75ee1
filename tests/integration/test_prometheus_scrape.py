"""A real Prometheus scrapes the real backend and finds every metric that rules, dashboard and runbook use.

Changes to the shipped configuration: addresses, 1 s between scrapes and evaluations, `for` 0 s.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from support.backend import AUTHORIZED, Program, environment, run_command, running_program, unique
from support.postgres import DatabaseUrls, PostgresServer
from support.prometheus import MONITORING, Prometheus, run_tool, running_prometheus, variant, wait_until
from support.promql import metric_names

JOB = "realestate-backend"
TOKEN = "test-metrics-token"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
# Series that Prometheus creates.
OWN = {"up", "ALERTS", "scrape_duration_seconds"}


@dataclass
class Monitored:
    """The backend, and the Prometheus that scrapes it."""

    program: Program
    prometheus: Prometheus
    names: set[str]

    def exposition(self) -> str:
        """Return what the backend exposes to a scraper with the token."""
        answer = self.program.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200
        return answer.text


def send_requests(program: Program) -> None:
    """Change every metric of the contract: a forged webhook, a tool, a wrong pairing code, a listing."""
    forged = {"X-Webhook-Timestamp": "1", "X-Webhook-Signature": "sha256=00"}
    answers = [
        program.post("/api/webhooks/moltbot", content=b"{}", headers=forged),
        program.post("/api/tools/listing.search", json={}, headers=AUTHORIZED),
        program.post(
            "/api/pairing/telegram/confirm", json={"peer_id": unique("peer"), "code": "0"}, headers=AUTHORIZED
        ),
        program.get("/api/listings/search"),
    ]
    assert [answer.status_code // 100 for answer in answers] == [4, 2, 4, 2]


def prune(environ: dict[str, str]) -> None:
    """Run retention as an operator does, for the metric of the last success."""
    done = run_command(environ, "keep", "retention", "run", "--yes", "--json")
    assert done.returncode == 0, done.stderr


def insert_eligible_row(urls: DatabaseUrls) -> None:
    """Insert a row past its horizon, for the metric of the oldest eligible row."""
    with psycopg.connect(urls.owner_url) as conn:
        conn.execute(
            "INSERT INTO inbound_events (id, source, received_at, payload)"
            " VALUES ('due', 'moltbot', now() - interval '30 days 1 hour', '{}')"
        )


@pytest.fixture(scope="module")
def monitored(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Run both for all tests of this file, and wait until Prometheus has scraped and evaluated everything."""
    folder = tmp_path_factory.mktemp("monitored")
    urls = postgres.create_database("wk_template")
    environ = environment(urls, folder, METRICS_TOKEN=TOKEN)
    with running_program(environ, urls) as program:
        program.wait_until_ready()
        send_requests(program)
        prune(environ)
        insert_eligible_row(urls)
        target = program.url.removeprefix("http://")
        with running_prometheus(variant(folder / "prometheus", target=target, token=TOKEN)) as prometheus:
            wait_until(lambda: "http_requests_total" in prometheus.metric_names(JOB), "second scrape")
            wait_until(
                lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()), "evaluation of all"
            )
            yield Monitored(program, prometheus, prometheus.metric_names(JOB))
    postgres.drop_database(urls.name)


def test_the_backend_is_up(monitored: Monitored) -> None:
    """The scrape succeeds with the token that both sides have."""
    assert monitored.prometheus.query(f'up{{job="{JOB}"}}') == {
        (("__name__", "up"), ("instance", monitored.program.url.removeprefix("http://")), ("job", JOB)): 1.0
    }


def test_every_metric_of_the_runbook_is_ingested(monitored: Monitored) -> None:
    """Every metric in the table of key metrics exists, with all series of a histogram."""
    text = (MONITORING / "README.md").read_text(encoding="utf-8")
    [table] = re.findall(r"### Key Metrics\n\n((?:\|.*\n)+)", text)
    documented = {
        name for line in table.splitlines() for name in re.findall(r"`([a-z_]+)`", line.split("|")[1])
    }
    assert len(documented) > 15
    histograms = {name for name in documented if name.endswith(("_duration_ms", "_duration_seconds"))}
    series = (documented - histograms) | {
        f"{name}_{kind}" for name in histograms for kind in ("bucket", "sum", "count")
    }
    assert series - monitored.names == set()


def test_every_metric_of_the_backend_is_in_the_runbook(monitored: Monitored) -> None:
    """Every metric of the service and the library is explained; those of the process need not be."""
    documented = (MONITORING / "README.md").read_text(encoding="utf-8")
    families = set(re.findall(r"^# TYPE (\S+) ", monitored.exposition(), re.MULTILINE))
    ours = {name for name in families if not name.startswith(("process_", "python_"))}
    assert {name for name in ours if f"`{name}`" not in documented} == set()


def test_every_metric_of_the_rules_is_ingested(monitored: Monitored) -> None:
    """Every metric that an alert uses exists."""
    used = set().union(*(metric_names(rule["expr"]) for rule in RULES))
    assert {"http_requests_total", "db_up"} <= used
    assert used - RECORDED - OWN - monitored.names == set()


def test_every_metric_of_the_dashboard_is_ingested(monitored: Monitored) -> None:
    """Every metric that a panel uses exists."""
    used = set().union(*(metric_names(expression) for _, expression in dashboard_expressions()))
    assert used - RECORDED - OWN - monitored.names == set()


def test_every_query_of_the_runbook_is_valid(monitored: Monitored) -> None:
    """Each query is valid and reads metrics that exist."""
    text = (MONITORING / "README.md").read_text(encoding="utf-8")
    queries = re.findall(r"```promql\n(.*?)```", text, re.DOTALL)
    assert len(queries) >= 5
    for query in queries:
        monitored.prometheus.query(query)
    assert set().union(*map(metric_names, queries)) - monitored.names == set()


def test_every_rule_evaluates_on_the_real_series(monitored: Monitored) -> None:
    """No rule fails, for example because a join finds two series for one label set."""
    broken = [
        (rule["name"], rule["lastError"]) for rule in monitored.prometheus.rules() if "lastError" in rule
    ]
    assert broken == []
    assert {rule["health"] for rule in monitored.prometheus.rules()} == {"ok"}


def test_a_healthy_backend_raises_only_the_watchdog(monitored: Monitored) -> None:
    """With `for` at 0 s no other alert fires, also none for a missing metric."""
    # With `for` at 0 s, TargetAbsent fires until the first scrape.
    wait_until(
        lambda: monitored.prometheus.firing() == {"Watchdog"}, "moment at which only the Watchdog fires"
    )


def test_the_bucket_of_the_latency_alert_exists(monitored: Monitored) -> None:
    """HighToolLatency counts calls above 5 s by this bucket; without it, it would never fire."""
    buckets = monitored.prometheus.query('tool_call_duration_ms_bucket{le=~"5000(\\\\.0)?"}')
    calls = monitored.prometheus.query("tool_call_duration_ms_count")
    tools = {dict(labels)["tool"] for labels in calls}
    assert {dict(labels)["tool"] for labels in buckets} == tools
    assert len(tools) == 5


def test_promtool_only_finds_the_units_of_the_contract(monitored: Monitored, tmp_path: Path) -> None:
    """`promtool check metrics` on the real exposition names the two `_ms` metrics, as the runbook says."""
    _, output = run_tool("promtool", "check", "metrics", folder=tmp_path, stdin=monitored.exposition())
    assert sorted(output.splitlines()) == [
        "http_request_duration_ms metric names should not contain abbreviated units",
        "tool_call_duration_ms metric names should not contain abbreviated units",
    ]
    runbook = " ".join((MONITORING / "README.md").read_text(encoding="utf-8").split())
    assert "*metric names should not contain abbreviated units* for `http_request_duration_ms`" in runbook


def dashboard_expressions() -> list[tuple[str, str]]:
    """Return panel and expression of each dashboard query, with values for Grafana's variables."""
    path = MONITORING / "grafana/dashboards/realestate-backend.json"
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    written = [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    written += [
        (one["name"], one["expr"]) for one in dashboard["annotations"]["list"] if not one.get("builtIn")
    ]
    values = {"$__rate_interval": "1m", "$instance": ".*"}
    for variable, value in values.items():
        written = [(title, expression.replace(variable, value)) for title, expression in written]
    return written


def test_every_query_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    """Each is checked as a recording rule, since promtool has no check for a single query."""
    expressions = dashboard_expressions()
    assert [expression for _, expression in expressions if "$" in expression] == []
    rules = [
        {"record": f"dashboard:query:{number}", "expr": expression, "labels": {"panel": title}}
        for number, (title, expression) in enumerate(expressions)
    ]
    document = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "dashboard.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    code, output = run_tool("promtool", "check", "rules", "--lint-fatal", "dashboard.yml", folder=tmp_path)
    assert code == 0, output
    assert f"{len(expressions)} rules found" in output


def test_every_query_of_the_dashboard_works_on_real_series(monitored: Monitored) -> None:
    """No query fails; those without events return nothing."""
    expressions = dashboard_expressions()
    wait_until(lambda: monitored.prometheus.query(dict(expressions)["Requests by status"]), "second sample")
    answers = {title: monitored.prometheus.query(expression) for title, expression in expressions}
    assert answers["Database"] == {(): 1.0}
    assert answers["Runs per day"] != {}

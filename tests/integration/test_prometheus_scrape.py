"""A real Prometheus scrapes the real backend, and every metric that somebody counts on is really there.

Changed from the shipped configuration: addresses, 1 s between scrapes and evaluations, `for` 0 s.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import yaml

from support.backend import AUTHORIZED, environment, running_program, unique
from support.prometheus import MONITORING, Prometheus, run_tool, running_prometheus, variant, wait_until
from support.promql import metric_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.backend import Program
    from support.postgres import DatabaseUrls, PostgresServer

JOB = "realestate-backend"
TOKEN = "test-metrics-token"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
# What Prometheus makes by itself.
OWN = {"up", "ALERTS", "scrape_duration_seconds"}


@dataclass
class Watched:
    """The backend, and the Prometheus that watches it."""

    program: Program
    prometheus: Prometheus
    names: set[str]

    def exposition(self) -> str:
        """What the backend shows to whoever has the token."""
        answer = self.program.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200
        return answer.text


def play(program: Program) -> None:
    """Let every metric of the contract move: a forged webhook, a tool, a wrong pairing code, a listing."""
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
    """Run retention as an operator does, so that there is a last success."""
    done = subprocess.run(
        [sys.executable, "-m", "realestate", "keep", "retention", "run", "--yes", "--json"],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def let_one_come_of_age(urls: DatabaseUrls) -> None:
    """Leave a row that is due: without one there is no oldest."""
    with psycopg.connect(urls.owner_url) as conn:
        conn.execute(
            "INSERT INTO inbound_events (id, source, received_at, payload)"
            " VALUES ('due', 'moltbot', now() - interval '30 days 1 hour', '{}')"
        )


@pytest.fixture(scope="module")
def watched(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Run both, once for the tests of this file, until Prometheus has everything that they ask for."""
    folder = tmp_path_factory.mktemp("watched")
    urls = postgres.create_database("wk_template")
    environ = environment(urls, folder, METRICS_TOKEN=TOKEN)
    with running_program(environ, urls) as program:
        program.wait_until_ready()
        play(program)
        prune(environ)
        let_one_come_of_age(urls)
        target = program.url.removeprefix("http://")
        with running_prometheus(variant(folder / "prometheus", target=target, token=TOKEN)) as prometheus:
            wait_until(lambda: "http_requests_total" in prometheus.metric_names(JOB), "second scrape")
            wait_until(
                lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()), "evaluation of all"
            )
            yield Watched(program, prometheus, prometheus.metric_names(JOB))
    postgres.drop_database(urls.name)


def test_the_backend_is_up(watched: Watched) -> None:
    """The scrape succeeds, with the token that both sides were given."""
    assert watched.prometheus.query(f'up{{job="{JOB}"}}') == {
        (
            ("__name__", "up"),
            ("instance", watched.program.url.removeprefix("http://")),
            ("job", JOB),
        ): 1.0
    }


def test_without_the_token_there_is_nothing_to_see(watched: Watched) -> None:
    """Where a token is set it is always required, on loopback too."""
    assert watched.program.get("/metrics").status_code == 401


def test_every_metric_of_the_runbook_is_ingested(watched: Watched) -> None:
    """The table of key metrics promises nothing that is not there, neither of a histogram's three series."""
    text = (MONITORING / "README.md").read_text(encoding="utf-8")
    [table] = re.findall(r"### Key Metrics\n\n((?:\|.*\n)+)", text)
    told = {name for line in table.splitlines() for name in re.findall(r"`([a-z_]+)`", line.split("|")[1])}
    assert len(told) > 15
    histograms = {name for name in told if name.endswith(("_duration_ms", "_duration_seconds"))}
    series = (told - histograms) | {
        f"{name}_{kind}" for name in histograms for kind in ("bucket", "sum", "count")
    }
    assert series - watched.names == set()


def test_every_metric_of_the_backend_is_in_the_runbook(watched: Watched) -> None:
    """What the service and the library count is explained; the process's other figures are their own."""
    told = (MONITORING / "README.md").read_text(encoding="utf-8")
    families = set(re.findall(r"^# TYPE (\S+) ", watched.exposition(), re.MULTILINE))
    ours = {name for name in families if not name.startswith(("process_", "python_"))}
    assert {name for name in ours if f"`{name}`" not in told} == set()


def test_every_metric_of_the_rules_is_ingested(watched: Watched) -> None:
    """No alert stands on a name that the backend does not have."""
    used = set().union(*(metric_names(rule["expr"]) for rule in RULES))
    assert {"http_requests_total", "db_up"} <= used
    assert used - RECORDED - OWN - watched.names == set()


def test_every_metric_of_the_dashboard_is_ingested(watched: Watched) -> None:
    """No panel stays empty for a wrong name."""
    used = set().union(*(metric_names(expression) for _, expression in dashboard_expressions()))
    assert used - RECORDED - OWN - watched.names == set()


def test_every_query_of_the_runbook_answers(watched: Watched) -> None:
    """Somebody in a hurry copies them: each is valid, and reads what is there."""
    text = (MONITORING / "README.md").read_text(encoding="utf-8")
    queries = re.findall(r"```promql\n(.*?)```", text, re.DOTALL)
    assert len(queries) >= 5
    for query in queries:
        watched.prometheus.query(query)
    assert set().union(*map(metric_names, queries)) - watched.names == set()


def test_every_rule_evaluates_on_the_real_series(watched: Watched) -> None:
    """Joins that two series of one label set would break are found here, not at three in the morning."""
    broken = [(rule["name"], rule["lastError"]) for rule in watched.prometheus.rules() if "lastError" in rule]
    assert broken == []
    assert {rule["health"] for rule in watched.prometheus.rules()} == {"ok"}


def test_a_healthy_backend_raises_only_the_watchdog(watched: Watched) -> None:
    """With `for` at 0 s whatever could fire would: every metric that the alerts miss is there."""
    # TargetAbsent, with its `for` cut, fires until the first scrape.
    wait_until(lambda: watched.prometheus.firing() == {"Watchdog"}, "silence but for the Watchdog")


def test_the_latency_alerts_bucket_exists(watched: Watched) -> None:
    """HighToolLatency counts the calls above 5 s by this bucket; without it, it would be silent for ever."""
    buckets = watched.prometheus.query('tool_call_duration_ms_bucket{le=~"5000(\\\\.0)?"}')
    calls = watched.prometheus.query("tool_call_duration_ms_count")
    tools = {dict(labels)["tool"] for labels in calls}
    assert {dict(labels)["tool"] for labels in buckets} == tools
    assert len(tools) == 5


def test_promtool_finds_nothing_but_the_contracts_units(watched: Watched, tmp_path: Path) -> None:
    """`promtool check metrics` on the real exposition names the two `_ms` metrics, for the known reason."""
    _, said = run_tool("promtool", "check", "metrics", folder=tmp_path, stdin=watched.exposition())
    assert sorted(said.splitlines()) == [
        "http_request_duration_ms metric names should not contain abbreviated units",
        "tool_call_duration_ms metric names should not contain abbreviated units",
    ]
    runbook = " ".join((MONITORING / "README.md").read_text(encoding="utf-8").split())
    assert "*metric names should not contain abbreviated units* for `http_request_duration_ms`" in runbook


def dashboard_expressions() -> list[tuple[str, str]]:
    """Panel and expression of each query of the dashboard, with values in place of Grafana's variables."""
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
    """Promtool has no check for a lone query, so each is checked as the rule that it could be."""
    expressions = dashboard_expressions()
    assert [expression for _, expression in expressions if "$" in expression] == []
    rules = [
        {"record": f"dashboard:query:{number}", "expr": expression, "labels": {"panel": title}}
        for number, (title, expression) in enumerate(expressions)
    ]
    document = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "dashboard.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    code, said = run_tool("promtool", "check", "rules", "--lint-fatal", "dashboard.yml", folder=tmp_path)
    assert code == 0, said
    assert f"{len(expressions)} rules found" in said


def test_every_query_of_the_dashboard_answers(watched: Watched) -> None:
    """On the real series no query fails; those without events have nothing to say yet."""
    expressions = dashboard_expressions()
    wait_until(lambda: watched.prometheus.query(dict(expressions)["Requests by status"]), "second sample")
    answers = {title: watched.prometheus.query(expression) for title, expression in expressions}
    assert answers["Database"] == {(): 1.0}
    assert answers["Runs in a day"] != {}

"""The alert rules as they are written; promtool tests what they do."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.promql import metric_names

MONITORING = Path(__file__).parents[2] / "infra/monitoring"
GROUPS = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
UNIT_TESTS = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((MONITORING / "tests").glob("*_test.yml"))
}
CASES = [
    case
    for document in UNIT_TESTS.values()
    for test in document["tests"]
    for case in test.get("alert_rule_test", ())
]
# The contract's own: name, severity, and how long the condition must hold.
CONTRACT = {
    "HighWebhookFailures": ("warning", {"2m"}),
    "HighToolLatency": ("warning", {"5m"}),
    "RepeatedPairingFailures": ("warning", {"1m"}),  # "5m or sooner"
    "HighErrorRate": ("critical", {"5m"}),
}


def title(rule: dict[str, Any]) -> str:
    """Return the name of a rule, with the label that distinguishes it from others of that name."""
    labels = rule.get("labels", {})
    return " ".join(filter(None, (rule["alert"], labels.get("scope"), labels.get("window"))))


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (job) (rate(a_total{b="c{d}", e=~"f|g"}[5m])) / 2 > bool 0.5', {"a_total"}),
        ('{__name__=~"a_seconds|b_seconds", job="j"} offset 5m', {"a_seconds", "b_seconds"}),
        ("x:y:z unless on (job, instance) up == 1e3 # not_this", {"x:y:z", "up"}),
        ("sum_over_time(a:b[1h:5m]) or vector(1)", {"a:b"}),
    ],
)
def test_metrics_of_an_expression_are_found(expression: str, names: set[str]) -> None:
    """Without labels, functions, keywords and durations."""
    assert metric_names(expression) == names


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_alerts_exist(name: str) -> None:
    """The four names keep their severity and their `for`."""
    severity, durations = CONTRACT[name]
    rules = [rule for rule in ALERTS if rule["alert"] == name]
    assert {rule["labels"]["severity"] for rule in rules} == {severity}
    assert {rule["for"] for rule in rules} == durations


@pytest.mark.parametrize("rule", ALERTS, ids=title)
def test_alerts_have_severity_texts_and_runbook(rule: dict[str, Any]) -> None:
    """The base of the runbook's address is set elsewhere."""
    assert rule["labels"]["severity"] in {"critical", "warning", "none"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    anchor = rule["alert"].lower()
    assert rule["annotations"]["runbook_url"] == "{{ $externalLabels.runbook_base }}#" + anchor


def test_runbook_address_is_one_setting() -> None:
    """An external label, which is removed from the alerts again."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    assert config["global"]["external_labels"]["runbook_base"].startswith("https://")
    assert {"action": "labeldrop", "regex": "runbook_base"} in config["alerting"]["alert_relabel_configs"]


@pytest.mark.parametrize("rule", ALERTS, ids=title)
def test_each_alert_is_tested_firing_and_silent(rule: dict[str, Any]) -> None:
    """The unit tests have, for each rule of a name, a case with it and one without it."""
    told_apart = {"severity", "scope", "window"}
    firing, silent = 0, 0
    for case in CASES:
        if case["alertname"] == rule["alert"]:
            expected = [alert["exp_labels"].items() for alert in case["exp_alerts"]]
            found = any({k: v for k, v in labels if k in told_apart} == rule["labels"] for labels in expected)
            firing += found
            silent += not found
    assert firing > 0
    assert silent > 0 or rule["alert"] == "Watchdog"


@pytest.mark.parametrize("name", UNIT_TESTS)
def test_groups_are_evaluated_in_file_order(name: str) -> None:
    """Otherwise promtool takes a random order, and alerts see the recorded value of the step before."""
    assert UNIT_TESTS[name]["group_eval_order"] == [group["name"] for group in GROUPS]


def test_each_recorded_series_is_used() -> None:
    """By some rule."""
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    used = set().union(*(metric_names(rule["expr"]) for rule in RULES))
    assert recorded - used == set()

"""The runbook is true: names, anchors, paths, settings, and the line that it shows."""

import json
import re
from dataclasses import MISSING, Field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from realestate.monitoring import POLICIES
from realestate.settings import DEFAULT_PORT, BackendSettings
from support.lines import documented_request_line
from watchkeeper.cli._main import GROUPS as COMMAND_GROUPS
from watchkeeper.logs._logging import Logging
from watchkeeper.logs.output._sink import Sink
from watchkeeper.settings import Limits, Settings, Thresholds

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra/monitoring"
RUNBOOK = (MONITORING / "README.md").read_text(encoding="utf-8")
GROUPS = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
ALERTS: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
ALERT_NAMES = sorted({rule["alert"] for rule in ALERTS})
PARTS = ("Meaning", "Impact", "Diagnosis", "Mitigation")
# What is no setting: words in capitals, and variables of the tools around us.
NO_SETTINGS = {"RUNBOOK_BASE", "DATADOG_API_KEY", "ELASTIC_PASSWORD", "XDG_STATE_HOME"}


def section(heading: str) -> str:
    """Return the text below a heading, up to the next one of its level."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", RUNBOOK, re.MULTILINE)
    assert found, f"no heading {heading}"
    following = re.compile(rf"^#{{1,{len(found[1])}}} ", re.MULTILINE).search(RUNBOOK, found.end())
    return RUNBOOK[found.end() : following.start() if following else len(RUNBOOK)]


def table(text: str) -> list[list[str]]:
    """Return the cells of the first table, without its head."""
    found = re.search(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    assert found
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()[2:]]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub, GitLab and Forgejo give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def names(cell: str) -> list[str]:
    """Return the code spans of a cell."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("name", ALERT_NAMES)
def test_each_alert_has_its_section(name: str) -> None:
    """Meaning, Impact, Diagnosis and Mitigation, under the anchor of its runbook_url."""
    text = section(name)
    assert tuple(re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)) == PARTS
    [url] = {rule["annotations"]["runbook_url"] for rule in ALERTS if rule["alert"] == name}
    assert url.endswith(f"#{anchor(name)}")


def test_table_of_alerts_matches_the_rules() -> None:
    """Names, severities and order are those of alerts.yml."""
    documented = {}
    for row in table(section("Alerts")):
        found = re.fullmatch(r"\[(\w+)\]\(#(\w+)\)", row[0])
        assert found
        assert found[2] == anchor(found[1])
        documented[found[1]] = set(row[1].split(", "))
    written: dict[str, set[str]] = {}
    for rule in ALERTS:
        written.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    assert documented == written


def test_links_within_the_page_exist() -> None:
    """Every anchor is a heading's, and no two headings share one."""
    anchors = [anchor(heading) for heading in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)]
    assert sorted(anchors) == sorted(set(anchors))
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= set(anchors)


def test_linked_files_exist() -> None:
    """In the repository."""
    linked = re.findall(r"\]\(([^)#:]+)\)", RUNBOOK)
    assert "alerts.yml" in linked
    assert [link for link in linked if not (MONITORING / link).exists()] == []


def test_sections_of_the_original_exist() -> None:
    """Readers of the original page find every section."""
    for heading in ("Metrics Endpoint", "Scrape Config", "Key Metrics", "Alerts", "Logs", "Retention"):
        assert section(heading)
    for place in ("CloudWatch Logs", "Datadog", "Loki", "ELK Stack"):
        assert f"**{place}**" in section("Shipping logs")


def test_paths_of_the_rollback_exist() -> None:
    """`git checkout HEAD~1 -- PATH` names existing files."""
    paths = re.findall(r"^git checkout HEAD~1 -- (.+?)(?:\s+#.*)?$", section("Rollback"), re.MULTILINE)
    assert len(paths) == 5
    assert [path for line in paths for path in line.split() if not (ROOT / path).exists()] == []


def test_scrape_config_matches_the_file() -> None:
    """The page shows prometheus.yml, with the job and target of the original."""
    [block] = re.findall(r"```yaml\n(scrape_configs:.*?)```", RUNBOOK, re.DOTALL)
    shown = yaml.safe_load(block)["scrape_configs"]
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    assert shown == config["scrape_configs"]
    assert shown[0]["job_name"] == "realestate-backend"
    assert shown[0]["static_configs"] == [{"targets": ["backend:3001"]}]


def backend_variables() -> set[str]:
    """Return the variables of the backend's settings."""
    assert BackendSettings.__doc__
    return set(re.findall(r"`([A-Z][A-Z_]+)`", BackendSettings.__doc__))


def library_settings() -> list[Field[Any]]:
    """Return the library's settings that have a variable."""
    return [
        field
        for cls in (Settings, Limits, Thresholds)
        for field in fields(cls)
        if "variable" in field.metadata
    ]


def test_table_has_exactly_the_settings() -> None:
    """Those of the library and of the backend."""
    documented = [names(row[0])[0] for row in table(section("Settings"))]
    library = {field.metadata["variable"] for field in library_settings()}
    assert sorted(documented) == sorted(library | backend_variables())


def test_defaults_match_the_code() -> None:
    """As the service uses them."""
    documented = {names(row[0])[0]: names(row[1]) for row in table(section("Settings"))}
    for field in library_settings():
        variable = field.metadata["variable"]
        if variable in {"WATCHKEEPER_STATE_DIR", "DATABASE_OWNER_URL"}:
            continue  # they depend on other variables, and the table says on which
        default = DEFAULT_PORT if variable == "PORT" else field.default
        assert default is not MISSING
        assert documented[variable] == shown(default), variable


def shown(default: object) -> list[str]:
    """Return a default as an operator would write it."""
    if default is None:
        return []
    if isinstance(default, bool):
        return ["on" if default else "off"]
    if isinstance(default, timedelta):
        return [f"{default.total_seconds():g}"]
    return [str(default)]


def test_every_variable_on_the_page_is_a_setting() -> None:
    """No command or sentence names an unknown variable."""
    known = {names(row[0])[0] for row in table(section("Settings"))} | {"NODE_ENV"} | NO_SETTINGS
    used = set(re.findall(r"`\$?\{?([A-Z]+(?:_[A-Z]+)+)\}?(?:=[^`]*)?`", RUNBOOK))
    used |= set(re.findall(r"\b([A-Z]+(?:_[A-Z]+)+)=", RUNBOOK))
    assert {"METRICS_TOKEN", "WATCHKEEPER_RETENTION"} <= used
    assert used - known == set()


def test_retention_table_matches_the_policies() -> None:
    """Page, declared policies and the missing-run rule name the same tables."""
    documented = [(names(row[0])[0], names(row[1])[0], row[2]) for row in table(section("Retention"))]
    declared = [(one.table, one.age_column, f"{one.keep.days} days") for one in POLICIES]
    assert documented == declared
    [rule] = [rule for rule in ALERTS if rule["labels"].get("scope") == "unreported"]
    assert re.findall(r'table="(\w+)"', rule["expr"]) == [one.table for one in POLICIES]


def test_example_log_entry_is_what_the_service_writes(tmp_path: Path) -> None:
    """Byte by byte, except for its time."""
    [line] = re.findall(r"```json\n(\{.*?\})\n```", section("Example log entry"), re.DOTALL)
    documented = json.loads(line)
    with (tmp_path / "lines").open("wb") as file:
        logging = Logging(service=documented["service"], env=documented["env"], sink=Sink(file.fileno()))
        logging.log_request(documented_request_line(documented))
        logging.flush()
    written = (tmp_path / "lines").read_text(encoding="utf-8").rstrip("\n")
    assert re.sub(r'"time":"[^"]+"', f'"time":"{documented["time"]}"', written) == line


def test_shipping_configurations_are_complete() -> None:
    """Each output is YAML that fits below the pipeline, and takes what the input tags."""
    blocks = re.findall(r"```yaml\n(.*?)```", section("Shipping logs"), re.DOTALL)
    common, *outputs = blocks
    stores = []
    for output in outputs:
        config = yaml.safe_load(common + output)
        [parser] = config["parsers"]
        [tail] = config["pipeline"]["inputs"]
        [store] = config["pipeline"]["outputs"]
        assert tail["parser"] == parser["name"]
        assert store["match"] == tail["tag"]
        stores.append(store["name"])
    assert stores == ["cloudwatch_logs", "datadog", "loki", "es"]


def test_keeper_commands_exist() -> None:
    """Every `keep` command on the page is in the program's help."""
    known = {f"{group.name} {command.name}" for group in COMMAND_GROUPS for command in group.commands}
    used = set(re.findall(r"dev\.py keep (\w+ \w+)", RUNBOOK))
    assert {"retention plan", "db dump", "db restore"} <= used
    assert used - known == set()

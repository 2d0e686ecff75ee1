"""The dashboard and its provisioning, as Grafana reads them."""

import itertools
import json
from pathlib import Path
from typing import Any

import yaml

GRAFANA = Path(__file__).parents[2] / "infra/monitoring/grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards/realestate-backend.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    """Return the grid cells that a panel covers."""
    place = panel["gridPos"]
    return {
        (x, y)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }


def test_panels_do_not_overlap() -> None:
    """Ids are unique too; Grafana's grid is 24 wide."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert max(x for panel in PANELS for x, _ in cells(panel)) < 24
    overlaps = [
        (one["title"], other["title"])
        for one, other in itertools.combinations(PANELS, 2)
        if cells(one) & cells(other)
    ]
    assert overlaps == []


def test_panels_use_the_chosen_data_source() -> None:
    """A panel with a fixed data source would stay empty on another Grafana."""
    assert "datasource" in {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    asked = {
        target["datasource"]["uid"]
        for panel in PANELS
        for target in ({"datasource": panel.get("datasource")}, *panel.get("targets", ()))
        if target["datasource"] is not None
    }
    assert asked == {"${datasource}"}


def test_panels_have_a_title_a_unit_and_a_query() -> None:
    """A panel explains itself, and a title names one panel."""
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert [target["refId"] for target in panel["targets"]] == sorted(
                {target["refId"] for target in panel["targets"]}
            )
            assert all(target["expr"] for target in panel["targets"])


def test_provisioning_points_at_the_dashboard() -> None:
    """One data source and one folder of dashboards."""
    [source] = _provisioned("datasources/prometheus.yml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    config = yaml.safe_load((GRAFANA.parent / "prometheus.yml").read_text(encoding="utf-8"))
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    [provider] = _provisioned("dashboards/realestate-backend.yml")["providers"]
    runbook = (GRAFANA.parent / "README.md").read_text(encoding="utf-8")
    assert f"cp infra/monitoring/grafana/dashboards/*.json {provider['options']['path']}/" in runbook


def _provisioned(path: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((GRAFANA / "provisioning" / path).read_text(encoding="utf-8"))
    assert document["apiVersion"] == 1
    return document

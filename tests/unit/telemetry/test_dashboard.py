"""The dashboard and the alert rules that are shipped ask only for what is exported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from outcrop.telemetry.metric_table import TABLE, Kind

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "outcrop.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
EXPORTED = {
    name: {*row.labels, *({"le"} if name.endswith("_bucket") else ())}
    for row in TABLE
    for name in (
        [row.exported]
        if row.kind is not Kind.HISTOGRAM
        else [f"{row.name}{end}" for end in ("_bucket", "_sum", "_count")]
    )
}
OF_THE_SCRAPE = {"job", "instance"}
_GROUPED = re.compile(r"\bby \(([^)]*)\)")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


QUERIES = {
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]},
    **{
        variable["name"]: variable["query"]["query"]
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    },
    **{rule["alert"]: rule["expr"] for rule in RULES},
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=list(QUERIES))
def test_a_query_asks_for_metrics_and_labels_that_are_exported(query: str) -> None:
    names = re.findall(r"\b(?:outcrop|process)_\w+", query)
    known = [name for name in names if name.startswith("outcrop_")]

    assert names
    assert set(known) <= EXPORTED.keys()
    labels = set().union(OF_THE_SCRAPE, *(EXPORTED[name] for name in known))
    grouped = {label.strip() for group in _GROUPED.findall(query) for label in group.split(",")}
    selected = {
        label for part in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)\s*[=!]~?\s*\"", part)
    }
    assert grouped | selected <= labels


@pytest.mark.parametrize("query", QUERIES.values(), ids=list(QUERIES))
def test_a_counter_is_asked_for_its_growth_and_a_gauge_never_is(query: str) -> None:
    kinds = {row.exported: row.kind for row in TABLE}
    for name in re.findall(r"\boutcrop_\w+", query):
        grows = re.search(rf"\b(rate|increase)\({name}\b", query) is not None
        assert grows == (kinds.get(name) in (Kind.COUNTER, None)), name


def test_every_metric_has_its_place_on_the_dashboard() -> None:
    asked = " ".join(target["expr"] for panel in panels() for target in panel["targets"])

    assert [row.name for row in TABLE if row.name not in asked] == []


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_says_what_is_wrong_and_where_to_look() -> None:
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("page", "ticket")

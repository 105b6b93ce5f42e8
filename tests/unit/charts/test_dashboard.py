"""The Grafana dashboard draws metrics that the code has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import pytest
from prometheus_client import Metric

from servewright_operator.metrics import REGISTRY
from servewright_runtime.metrics import Metrics
from support.tree import ROOT

DASHBOARD = json.loads((ROOT / "charts/servewright/dashboards/servewright.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
NAME = re.compile(r"\b(?:vllm:|servewright_)\w+")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def series(families: Iterable[Metric]) -> set[str]:
    """The names under which Prometheus stores families."""
    return {
        family.name + suffix for family in families for suffix in SUFFIXES.get(family.type, ("",))
    }


KNOWN = series([*Metrics().registry.collect(), *REGISTRY.collect()])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_draws_metrics_that_exist(panel: dict[str, object]) -> None:
    drawn = set(NAME.findall(json.dumps(panel["targets"])))
    assert drawn
    assert drawn <= KNOWN


def test_the_variables_read_metrics_that_exist() -> None:
    drawn = set(NAME.findall(json.dumps(DASHBOARD["templating"])))
    assert drawn
    assert drawn <= KNOWN


def test_panels_neither_overlap_nor_share_an_id() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = [
        (column, line)
        for panel in DASHBOARD["panels"]
        for column in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for line in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))

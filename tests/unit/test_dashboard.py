"""The Grafana dashboard names metrics that the programs give out, and labels that these have."""

from __future__ import annotations

import json
import re
from pathlib import Path

from shorthorn.domain.image_bytes import Direction
from shorthorn.domain.models import ImageCopy, ImageCopySpec, Meta, Pool, PoolSpec
from shorthorn.telemetry import Metrics

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "shorthorn.json"
METRIC = re.compile(r"\b(?:shorthorn|longhorn|process)_[a-z_]+\b")


def given_out() -> set[str]:
    """Return the names of all samples of a program that has seen a bit of everything."""
    metrics = Metrics()
    metrics.reconciled("volume", 0.1, "ok")
    metrics.count_image_bytes(Direction.UPLOAD, 1)
    pool = Pool(Meta("p"), PoolSpec("n", "p", "/p"))
    copy = ImageCopy(Meta("c"), ImageCopySpec("i", "u", "n", "p", "download"))
    metrics.watch_node(lambda: [pool], lambda: [copy])
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


def test_every_metric_of_the_dashboard_exists() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expression in expressions for name in METRIC.findall(expression)}
    assert named - given_out() == set()
    assert len(named) >= 8


def test_bytes_of_images_have_a_panel() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert "sum by (direction) (rate(shorthorn_image_bytes_total[5m]))" in expressions


def test_panels_have_names_and_places_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)

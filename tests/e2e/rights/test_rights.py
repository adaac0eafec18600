"""Every right that the chart grants is used, and none is missing.

Judges what was recorded while all other tests of clusters ran; `scripts/e2e` runs it after them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.e2e.cluster import rights
from tests.e2e.cluster.processes import ROOT
from tests.e2e.cluster.release import THREE_NODES

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def requests() -> list[rights.Request]:
    directory = os.environ.get(rights.RECORDS)
    assert directory, f"scripts/e2e sets {rights.RECORDS}, and runs the other tests before"
    found = rights.requests_recorded(Path(directory))
    assert found, "no test of a cluster has recorded anything"
    return found


def test_nothing_is_refused(requests: list[rights.Request]) -> None:
    refused = rights.refused(requests)
    assert not refused, "not granted:\n" + "\n".join(sorted(map(str, refused)))


def test_every_right_is_used(requests: list[rights.Request], tmp_path: Path) -> None:
    unused = rights.granted(THREE_NODES.rendered(tmp_path)) - rights.used(requests)
    lines = [f"{right} (without it: {what_breaks_without(right)})" for right in sorted(unused)]
    assert not unused, "granted, and used by no test:\n" + "\n".join(lines)


def what_breaks_without(right: rights.Right) -> str:
    """Return what docs/rbac.md says of a right, for each program that has it."""
    component, found = "", []
    for line in (ROOT / "docs" / "rbac.md").read_text().splitlines():
        component = line.removeprefix("## ") if line.startswith("## ") else component
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        is_its = (component == "node") == right.account.endswith("-node")
        if is_its and cells[0] == f"`{right.resource}`" and right.verb in cells[1].split(", "):
            found.append(f"{component}: {cells[3]}")
    return "; ".join(found)

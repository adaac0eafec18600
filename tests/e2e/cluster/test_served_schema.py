"""A real API server takes everything that the chart and the plain manifests hold, strictly.

Nothing is written: a dry run has the server's defaults, its validation and its admission, which
also compiles expressions. A field that it does not know or finds twice, a value out of range and
any warning (of a version that goes away, say) fail.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.chart import ROOT, VALUE_SETS, ValueSet, find_helm, render
from tests.e2e.cluster.control_plane import ControlPlane
from tests.manifest_rules import of_kind

MANIFESTS = ROOT / "deploy" / "manifests"
Document = dict[str, Any]


def rendered(values: ValueSet, scratch: Path) -> list[Document]:
    helm = find_helm()
    assert helm is not None, "run scripts/e2e-tools helm"
    return render(helm, values, scratch=scratch)


def dry_run(
    cluster: ControlPlane, documents: Sequence[Document]
) -> subprocess.CompletedProcess[str]:
    """Apply documents without effect; the namespaces that they are in are made."""
    for namespace in sorted({d["metadata"].get("namespace", "default") for d in documents}):
        meta = {"name": namespace}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    apply = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    return cluster.try_kubectl(*apply, stdin=yaml.safe_dump_all(documents))


def check_taken(cluster: ControlPlane, documents: Sequence[Document]) -> None:
    """Fail unless the server would take every document, and has nothing to say about any."""
    ran = dry_run(cluster, documents)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(ran.stdout.splitlines()) == len(documents)


@pytest.mark.parametrize("values", [pytest.param(v, id=v.name) for v in VALUE_SETS])
def test_what_the_chart_renders_is_taken(
    cluster: ControlPlane, values: ValueSet, tmp_path: Path
) -> None:
    check_taken(cluster, rendered(values, tmp_path))


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in MANIFESTS.glob("*.yaml")])
def test_a_plain_manifest_is_taken(cluster: ControlPlane, path: Path) -> None:
    check_taken(cluster, [d for d in yaml.safe_load_all(path.read_text()) if d])


def unknown_field(deployment: Document) -> None:
    deployment["spec"]["replica"] = 2


def wrong_type(daemon_set: Document) -> None:
    daemon_set["spec"]["minReadySeconds"] = "soon"


def value_out_of_range(driver: Document) -> None:
    driver["spec"]["fsGroupPolicy"] = "Sometimes"


def name_too_long(account: Document) -> None:
    account["metadata"]["name"] = "n" * 254


def loose_definition(crd: Document) -> None:
    del crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["type"]


def broken_expression(policy: Document) -> None:
    policy["spec"]["validations"][0]["expression"] = "object.metadata."


@pytest.mark.parametrize(
    ("kind", "spoil", "complaint"),
    [
        ("Deployment", unknown_field, 'unknown field "spec.replica"'),
        ("DaemonSet", wrong_type, "minReadySeconds"),
        ("CSIDriver", value_out_of_range, "fsGroupPolicy"),
        ("ServiceAccount", name_too_long, "metadata.name"),
        ("CustomResourceDefinition", loose_definition, "openAPIV3Schema.type"),
        ("ValidatingAdmissionPolicy", broken_expression, "expression"),
    ],
)
def test_one_mistake_is_refused(
    cluster: ControlPlane,
    kind: str,
    spoil: Callable[[Document], None],
    complaint: str,
    tmp_path: Path,
) -> None:
    document = of_kind(rendered(VALUE_SETS[0], tmp_path), kind)[0]
    spoil(document)
    ran = dry_run(cluster, [document])
    assert ran.returncode != 0
    assert complaint in ran.stderr

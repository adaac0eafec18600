"""The Helm chart: it renders cleanly in every promised way, and never to something that harms data.

Needs helm (`make e2e` builds one); what needs none is in tests/unit/test_manifests.py.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.chart import OWN_CRDS, ROOT, VALUE_SETS, ValueSet, find_helm, lint, render
from tests.manifest_rules import (
    complaints_about,
    containers_of,
    of_kind,
)

HELM = find_helm()


def rendered(values: ValueSet, scratch: Path) -> list[dict[str, Any]]:
    assert HELM is not None, "run scripts/e2e-tools helm"
    return render(HELM, values, scratch=scratch)


by_name = pytest.mark.parametrize("values", [pytest.param(v, id=v.name) for v in VALUE_SETS])


@by_name
def test_helm_lint_is_content_with(values: ValueSet, tmp_path: Path) -> None:
    assert HELM is not None, "run scripts/e2e-tools helm"
    assert "0 chart(s) failed" in lint(HELM, values, scratch=tmp_path)


@by_name
def test_every_document_keeps_the_rules(values: ValueSet, tmp_path: Path) -> None:
    assert complaints_about(rendered(values, tmp_path)) == []


@by_name
def test_namespaced_objects_are_in_the_namespace_of_the_release(
    values: ValueSet, tmp_path: Path
) -> None:
    documents = rendered(values, tmp_path)
    namespaces = {d["metadata"]["namespace"] for d in documents if "namespace" in d["metadata"]}
    assert namespaces == {values.namespace}


@by_name
def test_uninstalling_keeps_our_definitions_and_no_hook_deletes_anything(
    values: ValueSet, tmp_path: Path
) -> None:
    for document in rendered(values, tmp_path):
        annotations = document["metadata"].get("annotations") or {}
        assert not [key for key in annotations if key.startswith("helm.sh/hook")]
        if document["kind"] == "CustomResourceDefinition" and _is_ours(document):
            assert annotations["helm.sh/resource-policy"] == "keep"
        assert document["kind"] not in {"Namespace", "BackingImage", "Volume", "Pool", "Secret"}


def test_the_definitions_are_those_that_the_embedded_server_reads(tmp_path: Path) -> None:
    documents = of_kind(rendered(VALUE_SETS[0], tmp_path), "CustomResourceDefinition")
    for document in documents:
        assert document["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    sources = [yaml.safe_load(path.read_text()) for path in OWN_CRDS]
    assert sorted(documents, key=_name) == sorted(sources, key=_name)


def test_the_plain_manifests_are_what_the_chart_renders_to_today(tmp_path: Path) -> None:
    subprocess.run(
        [ROOT / "scripts/manifests", tmp_path],
        env={**os.environ, "HELM": os.fspath(HELM or "")},
        check=True,
    )
    for path in sorted(tmp_path.iterdir()):
        kept = ROOT / "deploy/manifests" / path.name
        assert path.read_text() == kept.read_text(), f"{kept}: run make manifests"


def test_the_driver_has_one_name_everywhere(tmp_path: Path) -> None:
    documents = rendered(_value_set("own-names"), tmp_path)
    text = yaml.safe_dump_all(documents)
    assert "driver.longhorn.io" not in text
    assert of_kind(documents, "CSIDriver")[0]["metadata"]["name"] == "images.example.org"
    assert of_kind(documents, "StorageClass")[0]["provisioner"] == "images.example.org"
    assert of_kind(documents, "VolumeSnapshotClass")[0]["driver"] == "images.example.org"
    leases = {
        name
        for role in of_kind(documents, "Role")
        for rule in role["rules"]
        if rule["resources"] == ["leases"]
        for name in rule.get("resourceNames", ())
    }
    assert leases == {
        "shorthorn-controller",
        "images-example-org",
        "external-snapshotter-leader-images-example-org",
        "external-resizer-images-example-org",
    }
    registrar = containers_of(of_kind(documents, "DaemonSet")[0])["node-driver-registrar"]
    socket = "/var/lib/kubelet/plugins/images.example.org/csi.sock"
    assert f"--kubelet-registration-path={socket}" in registrar["args"]


def test_node_groups_override_what_they_name_also_with_nothing(tmp_path: Path) -> None:
    sets = {
        s["metadata"]["name"]: s
        for s in of_kind(rendered(_value_set("node-groups"), tmp_path), "DaemonSet")
    }
    assert sorted(sets) == ["shorthorn-node-nvme", "shorthorn-node-rest"]
    nvme, rest = (sets[name]["spec"]["template"]["spec"] for name in sorted(sets))
    assert nvme["nodeSelector"] == {"kubernetes.io/os": "linux", "disk": "nvme"}
    assert nvme["tolerations"] == [{"operator": "Exists"}]
    assert "tolerations" not in rest
    arguments = containers_of(sets["shorthorn-node-nvme"])["shorthorn"]["args"]
    assert {"--node-tag=fast", "--node-tag=nvme", "--disk-tag=ssd"} <= set(arguments)
    assert "--data-dir=/mnt/nvme/shorthorn" in arguments
    assert "--node-tag=any" in containers_of(sets["shorthorn-node-rest"])["shorthorn"]["args"]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"controller": {"replica": 1}}, id="an unknown name"),
        pytest.param({"image": {"tag": "latest"}}, id="an image that moves"),
        pytest.param({"driverName": "Driver/X"}, id="no driver name"),
        pytest.param({"node": {"dataDir": "relative"}}, id="a relative path"),
        pytest.param({"snapshotClass": {"name": "longhorn-snapshot-vsc"}}, id="the user's class"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        rendered(ValueSet("wrong", values), tmp_path)
    assert "values don't meet the specifications of the schema" in refused.value.stderr


def _value_set(name: str) -> ValueSet:
    return next(values for values in VALUE_SETS if values.name == name)


def _is_ours(crd: dict[str, Any]) -> bool:
    return crd["spec"]["group"] in {"longhorn.io", "shorthorn.io"}


def _name(document: dict[str, Any]) -> str:
    name: str = document["metadata"]["name"]
    return name

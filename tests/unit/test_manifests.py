"""The plain manifests in deploy/manifests and the chart's files, as they are checked in.

Needs neither helm nor a cluster; what needs helm is in tests/e2e/cluster/test_chart.py.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from tests.e2e.chart import CHART, OWN_CRDS, ROOT
from tests.manifest_rules import complaints_about, containers_of, of_kind

MANIFESTS = ROOT / "deploy/manifests"
#: external-snapshotter/client v8.6.0, config/crd: SHA-256 of each file.
SNAPSHOT_CRDS = {
    "volumesnapshotclasses": "75e6565aac2c0f2949ed13ea884bbaa388cb7be576b558b709cf1168e011828d",
    "volumesnapshotcontents": "895a3c1e73b60f06a0deb566dd123d01bdf1b2efc5d5ff5231ff8bbcf42dafc7",
    "volumesnapshots": "b032116e987fb1d7d93cec7d942833adeb9d95c9bdc7e00c10b280c2fe4a6c33",
}


def documents(name: str) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all((MANIFESTS / name).read_text()) if d]


# ---- The manifests ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["crds.yaml", "shorthorn.yaml", "snapshot-controller.yaml"])
def test_every_document_keeps_the_rules(name: str) -> None:
    assert complaints_about(documents(name)) == []


def test_deleting_the_manifest_that_may_be_deleted_deletes_no_data() -> None:
    harmless = {d["kind"] for d in documents("shorthorn.yaml")}
    assert not harmless & {"Namespace", "CustomResourceDefinition", "PersistentVolume", "Secret"}
    kinds = {d["kind"] for d in documents("crds.yaml")}
    assert kinds == {"Namespace", "CustomResourceDefinition"}


def test_the_definitions_are_those_that_the_embedded_server_reads() -> None:
    found = of_kind(documents("crds.yaml"), "CustomResourceDefinition")
    assert found == [yaml.safe_load(path.read_text()) for path in OWN_CRDS]
    copies = sorted((CHART / "files/crds").iterdir())
    assert [path.name for path in copies] == [path.name for path in OWN_CRDS]
    assert [p.read_bytes() for p in copies] == [p.read_bytes() for p in OWN_CRDS]


def test_nobody_deletes_the_index_of_the_data_while_nodes_run() -> None:
    policy = of_kind(documents("shorthorn.yaml"), "ValidatingAdmissionPolicy")[0]["spec"]
    rules = policy["matchConstraints"]["resourceRules"]
    guarded = {name for rule in rules for name in rule["resourceNames"]}
    assert guarded == {d["metadata"]["name"] for d in documents("crds.yaml")}
    assert {operation for rule in rules for operation in rule["operations"]} == {"DELETE"}


def test_the_snapshot_definitions_are_the_csi_projects_own() -> None:
    files = sorted((CHART / "charts/snapshot-controller/crds").iterdir())
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert {f"snapshot.storage.k8s.io_{k}.yaml": v for k, v in SNAPSHOT_CRDS.items()} == sums
    assert documents("snapshot-crds.yaml") == [
        d for path in files for d in yaml.safe_load_all(path.read_text())
    ]


def test_chart_image_and_package_have_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    for name in ("deploy/container/Containerfile",):
        assert f'image.version="{version}"' in (ROOT / name).read_text()
    driver = containers_of(of_kind(documents("shorthorn.yaml"), "DaemonSet")[0])["shorthorn"]
    assert driver["image"] == f"localhost/shorthorn:{version}"


# ---- What the programs and the cluster rely on --------------------------------------------------


def test_the_driver_is_one_that_the_scheduler_plans_with_and_nobody_attaches() -> None:
    spec = of_kind(documents("shorthorn.yaml"), "CSIDriver")[0]["spec"]
    assert spec["attachRequired"] is False
    assert spec["fsGroupPolicy"] == "File"
    assert spec["storageCapacity"] is True


def test_the_class_waits_for_the_scheduler_and_ours_is_not_the_users_snapshot_class() -> None:
    storage_class = of_kind(documents("shorthorn.yaml"), "StorageClass")[0]
    assert storage_class["metadata"]["name"] == "longhorn"
    assert storage_class["volumeBindingMode"] == "WaitForFirstConsumer"
    assert storage_class["allowVolumeExpansion"] is True
    snapshot_class = of_kind(documents("shorthorn.yaml"), "VolumeSnapshotClass")[0]
    assert snapshot_class["parameters"]["type"] == "bi"
    page = ROOT / "src/shorthorn/demo/page"
    named_on_the_page = [
        d["metadata"]["name"]
        for path in page.glob("*.yaml")
        for d in yaml.safe_load_all(path.read_text())
        if d and d["kind"] == "VolumeSnapshotClass"
    ]
    assert named_on_the_page
    assert snapshot_class["metadata"]["name"] not in named_on_the_page


def test_a_node_is_replaced_before_the_next_and_never_doubled() -> None:
    strategy = of_kind(documents("shorthorn.yaml"), "DaemonSet")[0]["spec"]["updateStrategy"]
    assert strategy == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0},
    }


def test_what_a_node_mounts_is_the_hosts() -> None:
    driver = containers_of(of_kind(documents("shorthorn.yaml"), "DaemonSet")[0])["shorthorn"]
    shared = {
        mount["mountPath"]
        for mount in driver["volumeMounts"]
        if mount.get("mountPropagation") == "Bidirectional"
    }
    assert shared == {"/var/lib/kubelet", "/var/lib/shorthorn"}


def test_each_sidecar_of_several_controllers_elects_a_leader() -> None:
    containers = containers_of(of_kind(documents("shorthorn.yaml"), "Deployment")[0])
    for name in ("csi-provisioner", "csi-snapshotter", "csi-resizer"):
        assert "--leader-election" in containers[name]["args"]
    assert "--leader-elect" in containers["shorthorn"]["args"]
    provisioner = set(containers["csi-provisioner"]["args"])
    assert {"--default-fstype=ext4", "--enable-capacity", "--strict-topology"} <= provisioner


def test_the_schema_knows_every_value() -> None:
    for chart in (CHART, CHART / "charts/snapshot-controller"):
        schema = json.loads((chart / "values.schema.json").read_text())
        known = yaml.safe_load((chart / "values.yaml").read_text())
        assert known.keys() <= schema["properties"].keys()


def test_every_value_has_a_comment_or_a_commented_parent() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if line and not line.startswith((" ", "#")) and not above.startswith("#")
    ]
    assert bare == []


def test_every_right_has_its_reason_in_the_documentation_and_no_reason_is_left_over() -> None:
    granted: dict[str, dict[str, set[str]]] = {}
    for name in ("shorthorn.yaml", "snapshot-controller.yaml"):
        for role in of_kind(documents(name), "Role", "ClusterRole"):
            component = granted.setdefault(role["metadata"]["name"].removeprefix("shorthorn-"), {})
            for rule in role["rules"]:
                for resource in rule["resources"]:
                    component.setdefault(resource, set()).update(rule["verbs"])
    assert documented_rights((ROOT / "docs/rbac.md").read_text()) == granted


def documented_rights(page: str) -> dict[str, dict[str, set[str]]]:
    """Return component, resource and verbs of every table row with all four columns filled."""
    rights: dict[str, dict[str, set[str]]] = {}
    component = ""
    for line in page.splitlines():
        if line.startswith("## "):
            component = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and all(cells) and cells[0].startswith("`"):
            verbs = set(cells[1].split(", "))
            rights.setdefault(component, {}).setdefault(cells[0].strip("`"), set()).update(verbs)
    return rights


# ---- A bad sample for each rule -----------------------------------------------------------------


def broken(change: Callable[[list[dict[str, Any]]], object]) -> list[str]:
    changed = copy.deepcopy(documents("shorthorn.yaml"))
    change(changed)
    return complaints_about(changed)


def driver_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    return containers_of(of_kind(found, "DaemonSet")[0])["shorthorn"]


def pod_of(found: list[dict[str, Any]], kind: str = "Deployment") -> dict[str, Any]:
    pod: dict[str, Any] = of_kind(found, kind)[0]["spec"]["template"]["spec"]
    return pod


def rules_of(found: list[dict[str, Any]], kind: str, name: str) -> list[dict[str, Any]]:
    role = next(d for d in of_kind(found, kind) if d["metadata"]["name"] == name)
    rules: list[dict[str, Any]] = role["rules"]
    return rules


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param(
            lambda d: d[0].update(apiVersion="v1beta1"), "is not the version", id="old version"
        ),
        pytest.param(lambda d: d[0]["metadata"].pop("namespace"), "not cluster-wide", id="place"),
        pytest.param(lambda d: d.append(d[0]), "is there twice", id="twice"),
        pytest.param(
            lambda d: pod_of(d).update(serviceAccountName="other"), "does not exist", id="account"
        ),
        pytest.param(
            lambda d: d.remove(of_kind(d, "RoleBinding")[0]), "bound to nobody", id="unbound"
        ),
        pytest.param(
            lambda d: rules_of(d, "Role", "shorthorn-node")[0].update(verbs=["*"]),
            "has a wildcard",
            id="wildcard",
        ),
        pytest.param(
            lambda d: rules_of(d, "Role", "shorthorn-node")[-1].pop("resourceNames"),
            "more Secrets than its own",
            id="all secrets",
        ),
        pytest.param(
            lambda d: rules_of(d, "ClusterRole", "shorthorn-provisioner")[0].update(
                verbs=["escalate"]
            ),
            "grant itself rights",
            id="escalation",
        ),
        pytest.param(
            lambda d: driver_of(d).update(image="host:5000/shorthorn"), "is not fixed", id="image"
        ),
        pytest.param(lambda d: pod_of(d).update(hostPID=True), "with the host", id="host"),
        pytest.param(lambda d: pod_of(d)["volumes"].pop(), "tmp is missing", id="no volume"),
        pytest.param(
            lambda d: pod_of(d, "DaemonSet")["containers"][1]["securityContext"].update(
                privileged=True
            ),
            "privileged is not",
            id="privileged sidecar",
        ),
    ],
)
def test_a_broken_manifest_is_found(
    change: Callable[[list[dict[str, Any]]], object], complaint: str
) -> None:
    assert any(complaint in found for found in broken(change))

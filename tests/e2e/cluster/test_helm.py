"""helm itself: install, upgrade, uninstall and install again, and the data that outlives them.

Every test begins and ends with the chart installed, and its programs running as of its objects.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.chart import OWN_CRDS, ROOT
from tests.e2e.cluster.helm import Helm, index_of_data
from tests.e2e.cluster.release import NAMESPACE, Layout, Machine, Release, installed
from tests.e2e.cluster.test_nodes import digest, fill
from tests.e2e.cluster.users import User, user
from tests.integration.daemon_process import poll

pytestmark = [pytest.mark.root, pytest.mark.xfs]

MANIFESTS = ROOT / "deploy" / "manifests"
#: As docs/install.md installs it, but small.
VALUES: dict[str, Any] = {
    "controller": {"replicas": 1},
    "node": {"poolSize": "1G"},
    "snapshotController": {"enabled": True},
}
VERBOSE: dict[str, Any] = {
    **VALUES,
    "controller": {"replicas": 1, "extraArgs": ["--verbose"]},
    "node": {"poolSize": "1G", "extraArgs": ["--verbose"]},
}
LAYOUT = Layout(VALUES, (Machine("node-0"),))
#: What has to be there before data can be used: claims, images, and what nodes trust each other by.
KINDS_WITH_DATA = {
    "BackingImage",
    "CustomResourceDefinition",
    "ImageCopy",
    "Namespace",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pool",
    "Secret",
    "Volume",
    "VolumeSnapshot",
    "VolumeSnapshotContent",
}


@dataclass
class Installed:
    """The release, and a claim `golden` with a snapshot `golden` of it that is an image."""

    release: Release
    helm: Helm
    owner: User
    digest: str
    refused_without_snapshots: str

    def restart(self, values: Mapping[str, Any]) -> None:
        """Run the pods that Kubernetes makes of what helm wrote, in place of those that run."""
        scratch = self.release.plane.directory
        self.release.end_pods()
        self.release.documents = Layout(values, LAYOUT.machines).rendered(scratch)
        self.release.run_pods()


@pytest.fixture(scope="module")
def made() -> Iterator[Installed]:
    """The chart, installed by helm into a cluster that has none of its kinds."""
    directory = Path(tempfile.mkdtemp(prefix="shorthorn-e2e-"))
    refused = []

    def write(release: Release) -> None:
        plane = release.plane
        plane.kubectl("delete", "crd", "--all")
        helm = Helm(plane, NAMESPACE)
        refused.append(helm.refusal({}))
        helm.install(VALUES)
        plane.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=90s")
        plane.restart("snapshot-controller")

    try:
        with installed(directory, LAYOUT, write) as release:
            with user(release, "golden") as owner:
                owner.claim("golden", "64Mi")
                with owner.mounted("golden") as mounted:
                    content = fill(mounted, 1)
                    owner.snapshot("golden", "golden", owner.snapshot_class("bi", type="bi"))
                    owner.image_of("golden")
                trusted = ("shorthorn-peer-ca", "shorthorn-peer-tls", "shorthorn-web")
                for name in trusted:
                    release.plane.api.wait("Secret", NAMESPACE, name, bool)
                helm = Helm(release.plane, NAMESPACE)
                yield Installed(release, helm, owner, content, refused[0])
            poll(lambda: not release.left(), what="an empty pool, once everything was deleted")
    finally:
        shutil.rmtree(directory)


def test_install_writes_what_the_chart_renders(made: Installed) -> None:
    documents = made.release.documents
    every = ("get", "--filename=-", "--output=json")
    found = json.loads(made.release.plane.kubectl(*every, stdin=yaml.safe_dump_all(documents)))
    assert len(found["items"]) == len(documents)
    for wanted, live in zip(documents, found["items"], strict=True):
        own = {key: value for key, value in wanted.items() if key != "status"}
        assert [*lacking(live, own, wanted["kind"])] == []


def lacking(live: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Say where something is not as wanted; what is there besides are the server's defaults."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        for key, value in wanted.items():
            yield from lacking(live.get(key), value, f"{where}.{key}")
    elif isinstance(wanted, list) and isinstance(live, list) and len(wanted) == len(live):
        for index, value in enumerate(wanted):
            yield from lacking(live[index], value, f"{where}.{index}")
    elif live != wanted and (wanted or live):
        yield f"{where}: {live!r} and not {wanted!r}"


def test_an_upgrade_changes_programs_while_a_volume_is_used(made: Installed) -> None:
    before = index_of_data(made.release.plane)
    assert {kind for kind, _, _ in before} >= KINDS_WITH_DATA
    with made.owner.mounted("golden") as mounted:
        made.helm.upgrade(VERBOSE, "--reset-then-reuse-values")
        made.restart(VERBOSE)
        for pod in (*made.release.nodes, *made.release.controllers):
            assert "--verbose" in pod.driver.command
        assert digest(mounted) == made.digest
    assert index_of_data(made.release.plane) == before


def test_a_class_is_changed_by_deleting_it_first(made: Installed) -> None:
    plane = made.release.plane
    before = index_of_data(plane)
    for values in ({**VALUES, "storageClass": {"fsType": "xfs"}}, VALUES):
        assert "field is immutable" in made.helm.refusal(values, verb="upgrade")
        plane.kubectl("delete", "storageclass", "longhorn")
        made.helm.upgrade(values)
    assert index_of_data(plane) == before


def test_no_value_takes_the_definitions_away(made: Installed) -> None:
    plane = made.release.plane
    before = index_of_data(plane)
    unprotected = {**VALUES, "protection": {"enabled": False}}
    made.helm.upgrade(unprotected)
    # Nobody else keeps them now: a policy counts for a moment after it was deleted.
    delete = ("delete", "crd/volumes.shorthorn.io", "--dry-run=server")
    poll(lambda: plane.try_kubectl(*delete).returncode == 0, what="no policy")
    made.helm.upgrade({**unprotected, "crds": {"install": False}})
    assert index_of_data(plane) == before
    made.helm.upgrade(VALUES)
    assert index_of_data(plane) == before


def test_going_back_changes_no_data(made: Installed) -> None:
    plane = made.release.plane
    before = index_of_data(plane)
    made.helm.upgrade(VERBOSE)
    made.helm.rollback()
    assert index_of_data(plane) == before


def test_what_was_uninstalled_is_found_when_it_is_installed_again(made: Installed) -> None:
    plane, owner = made.release.plane, made.owner
    before = index_of_data(plane)
    made.helm.uninstall()
    made.release.end_pods()
    assert index_of_data(plane) == before
    others = [d for d in made.release.documents if d["kind"] != "CustomResourceDefinition"]
    get = ("get", "--filename=-", "--ignore-not-found", "--output=name")
    assert plane.kubectl(*get, stdin=yaml.safe_dump_all(others)) == ""

    made.helm.install(VALUES)
    made.restart(VALUES)
    assert index_of_data(plane) == before
    with owner.mounted("golden") as mounted:
        assert digest(mounted) == made.digest
    owner.claim("restored", "64Mi", snapshot="golden")
    with owner.mounted("restored") as mounted:
        assert digest(mounted) == made.digest


def test_plain_manifests_keep_the_data_too_and_are_taken_over(made: Installed) -> None:
    plane = made.release.plane
    made.helm.uninstall()
    before = index_of_data(plane)
    plane.apply(MANIFESTS / "crds.yaml")
    plane.apply(MANIFESTS / "shorthorn.yaml")
    plane.kubectl("delete", f"--filename={MANIFESTS / 'shorthorn.yaml'}")
    assert index_of_data(plane) == before
    plane.apply(MANIFESTS / "shorthorn.yaml")
    assert "invalid ownership metadata" in made.helm.refusal(VALUES)
    made.helm.install(VALUES, "--take-ownership")
    assert index_of_data(plane) == before
    made.restart(VALUES)
    with made.owner.mounted("golden") as mounted:
        assert digest(mounted) == made.digest


# ---- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "victim", [f"namespace/{NAMESPACE}", *(f"crd/{path.stem}" for path in OWN_CRDS)]
)
def test_the_index_of_the_data_cannot_be_deleted(made: Installed, victim: str) -> None:
    plane = made.release.plane
    if victim.startswith("crd/"):
        group, _, plural = victim.removeprefix("crd/").partition("_")
        victim = f"crd/{plural}.{group}"
    # A policy counts a moment after it was written. A dry run meets it, and deletes nothing.
    delete = ("delete", victim, "--dry-run=server")
    poll(lambda: plane.try_kubectl(*delete).returncode != 0, what=f"{victim} is kept")
    assert "this would delete the data of every" in plane.try_kubectl(*delete).stderr


def test_a_cluster_without_snapshots_is_refused(made: Installed) -> None:
    assert "This cluster has no snapshot controller" in made.refused_without_snapshots


ENGINES = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: engines.longhorn.io}
spec:
  group: longhorn.io
  scope: Namespaced
  names: {kind: Engine, plural: engines}
  versions:
    - {name: v1beta2, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
"""
MANAGER = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: longhorn-manager, namespace: default}
spec:
  selector: {matchLabels: {app: longhorn-manager}}
  template:
    metadata: {labels: {app: longhorn-manager}}
    spec:
      nodeSelector: {is: nowhere}
      containers: [{name: a, image: none.example.org/none}]
"""
DRIVER = """
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: other.example.org}
"""


@pytest.mark.parametrize(
    ("neighbour", "values", "complaint"),
    [
        pytest.param(ENGINES, {}, "CustomResourceDefinition engines.longhorn.io", id="kinds"),
        pytest.param(MANAGER, {}, "DaemonSet default/longhorn-manager", id="manager"),
        pytest.param(
            DRIVER,
            {"driverName": "other.example.org"},
            "CSIDriver other.example.org exists and is not Shorthorn's",
            id="driver",
        ),
    ],
)
def test_a_neighbour_is_refused(
    made: Installed, neighbour: str, values: dict[str, Any], complaint: str
) -> None:
    plane = made.release.plane
    plane.apply(neighbour)
    try:
        assert complaint in made.helm.refusal(values, "--dry-run=server", name="second")
    finally:
        plane.kubectl("delete", "--filename=-", stdin=neighbour)


def test_images_in_another_namespace_are_refused(made: Installed) -> None:
    elsewhere = Helm(made.release.plane, "golden")
    said = elsewhere.refusal({}, "--dry-run=server", name="second")
    assert f"Install into namespace {NAMESPACE}, or delete that BackingImage." in said


def test_a_definition_of_somebody_else_is_refused(made: Installed) -> None:
    with without_label(made.release, "backingimages.longhorn.io", "app.kubernetes.io/name"):
        said = made.helm.refusal({}, "--dry-run=server", name="second")
    assert "backingimages.longhorn.io exists and is not Shorthorn's" in said


@contextlib.contextmanager
def without_label(release: Release, crd: str, label: str) -> Iterator[None]:
    """A CustomResourceDefinition does not say that it is ours, for a while."""
    release.plane.kubectl("label", "crd", crd, f"{label}-")
    try:
        yield
    finally:
        release.plane.kubectl("label", "crd", crd, f"{label}=shorthorn")

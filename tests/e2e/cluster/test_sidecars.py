"""The upstream sidecars drive the socket of a running service for a real API server.

One host without kubelet: the service's own API server is there too, but nothing of these objects is
in it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.cluster.control_plane import ControlPlane
from tests.integration.daemon_process import ServiceProcess, poll, running
from tests.integration.service_api import is_bound, is_ready

DRIVER = "driver.longhorn.io"
TOPOLOGY = "topology.shorthorn.io/node"
CLASSES: list[dict[str, Any]] = [
    {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": DRIVER},
        "spec": {"attachRequired": False, "fsGroupPolicy": "File"},
    },
    {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "longhorn"},
        "provisioner": DRIVER,
        "allowVolumeExpansion": True,
    },
    {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotClass",
        "metadata": {"name": "bi"},
        "driver": DRIVER,
        "deletionPolicy": "Delete",
        "parameters": {"type": "bi"},
    },
]
SIDECARS = {
    "csi-provisioner": ["--default-fstype=ext4"],
    "csi-snapshotter": [],
    "csi-resizer": ["--handle-volume-inuse-error=false"],
}
#: A lease that its holder has left is taken over after seconds.
QUICK = [
    "--leader-election-lease-duration=3s",
    "--leader-election-renew-deadline=2s",
    "--leader-election-retry-period=500ms",
]


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    root = Path(tempfile.mkdtemp(prefix="shorthorn-e2e-"))
    try:
        with running(root / "data", pool_size="1G") as process:
            yield process
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def driven(own_cluster: ControlPlane, service: ServiceProcess) -> ControlPlane:
    """A cluster with the service as its driver."""
    (pool,) = service.api.list("Pool")
    node = pool["spec"]["nodeID"]
    driver = {"name": DRIVER, "nodeID": node, "topologyKeys": [TOPOLOGY]}
    own_cluster.add_node(node, labels={TOPOLOGY: node}, drivers=[driver])
    own_cluster.apply(CLASSES)
    for name, arguments in SIDECARS.items():
        arguments = [*arguments, *QUICK]
        socket = service.data_dir / "csi.sock"
        own_cluster.sidecar(name, socket, arguments, own_cluster.kubeconfig)
    return own_cluster


def claim(name: str, size: str = "320Mi", snapshot: str = "") -> dict[str, Any]:
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "longhorn",
            "resources": {"requests": {"storage": size}},
            **({"dataSource": source} if snapshot else {}),
        },
    }


def test_a_volume_becomes_an_image_and_a_volume_again(driven: ControlPlane):
    api = driven.api
    api.create(claim("one"))
    api.wait("PersistentVolumeClaim", "default", "one", is_bound)
    api.create(
        {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": {"name": "image", "namespace": "default"},
            "spec": {
                "volumeSnapshotClassName": "bi",
                "source": {"persistentVolumeClaimName": "one"},
            },
        }
    )
    api.wait("VolumeSnapshot", "default", "image", is_ready)
    (content,) = api.list("VolumeSnapshotContent")
    assert content["status"]["snapshotHandle"].startswith("bi://")
    api.create(claim("restored", "400Mi", "image"))
    api.wait("PersistentVolumeClaim", "default", "restored", is_bound)
    for kind, name in (
        ("PersistentVolumeClaim", "restored"),
        ("VolumeSnapshot", "image"),
        ("PersistentVolumeClaim", "one"),
    ):
        api.delete(kind, "default", name)
    api.wait_gone("VolumeSnapshotContent", "", content["metadata"]["name"])
    assert api.list("BackingImage") == []
    for volume in api.list("PersistentVolume"):
        api.wait_gone("PersistentVolume", "", volume["metadata"]["name"])


def test_a_sidecar_that_is_killed_goes_on_when_it_is_back(driven: ControlPlane):
    driven.kill("csi-provisioner")
    driven.api.create(claim("waiting"))
    driven.restart("csi-provisioner")
    found = driven.api.wait("PersistentVolumeClaim", "default", "waiting", is_bound)
    assert found is not None
    driven.api.delete("PersistentVolumeClaim", "default", "waiting")
    driven.api.wait_gone("PersistentVolume", "", found["spec"]["volumeName"])


def test_one_of_two_leads_and_the_other_takes_over(driven: ControlPlane, service: ServiceProcess):
    lease = "external-resizer-driver-longhorn-io"
    assert driven.holder(lease) == "csi-resizer"
    standby = driven.sidecar(
        "resizer-2",
        service.data_dir / "csi.sock",
        [*SIDECARS["csi-resizer"], *QUICK],
        driven.kubeconfig,
        program="csi-resizer",
    )
    assert driven.holder(lease) == "csi-resizer"
    driven.kill("csi-resizer")
    poll(lambda: driven.holder(lease) == "resizer-2", what=standby.tail())

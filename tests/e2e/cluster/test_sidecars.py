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

import grpc
import httpx2
import pytest
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.processes import binary, free_port
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
#: A lease that its holder has left is taken over after seconds; but nobody starts again who ends
#: because a busy machine did not let him renew his.
QUICK = [
    "--leader-election-lease-duration=8s",
    "--leader-election-renew-deadline=7s",
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
    poll(lambda: driven.holder(lease) == "csi-resizer", what="a resizer that leads")
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


def test_the_registrar_tells_a_kubelet_where_the_driver_is(
    cluster: ControlPlane, service: ServiceProcess, tmp_path: Path
):
    socket = tmp_path / f"{DRIVER}-reg.sock"
    command = [
        binary("registrar"),
        f"--csi-address={service.data_dir / 'csi.sock'}",
        "--kubelet-registration-path=/seen/by/kubelet.sock",
        f"--plugin-registration-path={tmp_path}",
    ]
    process = cluster.add("registrar", command, lambda: "listening at" in process.said())
    process.start()
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        # No stubs for one call with an empty request: the answer's strings are in it as they are.
        ask: Any = channel.unary_unary("/pluginregistration.Registration/GetInfo")
        answer = ask(b"", timeout=10)
    for text in (b"CSIPlugin", DRIVER.encode(), b"/seen/by/kubelet.sock", b"1.0.0"):
        assert text in answer
    process.kill()


def test_health_is_the_drivers_own(cluster: ControlPlane, service: ServiceProcess):
    port = free_port()
    url = f"http://127.0.0.1:{port}/healthz"
    command = [
        binary("health"),
        f"--csi-address={service.data_dir / 'csi.sock'}",
        f"--http-endpoint=127.0.0.1:{port}",
    ]
    process = cluster.add("health", command, lambda: cluster.answers(url))
    process.start()
    missing = f"--csi-address={service.data_dir / 'nothing.sock'}"
    port = free_port()
    other = f"http://127.0.0.1:{port}/healthz"
    command = [binary("health"), missing, f"--http-endpoint=127.0.0.1:{port}"]
    without = cluster.add("health-without", command, lambda: "listening at" in without.said())
    without.start()
    poll(lambda: unhealthy(other), what="no answer")
    process.kill()
    without.kill()


def unhealthy(url: str) -> bool:
    """Whether the server answers that its driver is not well."""
    try:
        return httpx2.get(url, trust_env=False, timeout=10).status_code == 500
    except httpx2.HTTPError:
        return False

"""Volumes that grow: the resizer asks the controller, and the node grows the file system.

The kubelet's part, NodeExpandVolume, is asked by the test. ext4 grows before it is mounted only:
growing it online needs CAP_SYS_RESOURCE, which these machines do not have.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.e2e.cluster.release import DRIVER
from tests.e2e.cluster.test_nodes import digest, fill
from tests.e2e.cluster.users import PATIENCE_S, User
from tests.integration.service_api import Object

pytestmark = pytest.mark.root

MIB = 1 << 20


def ask_for(own: User, claim: str, size: str) -> Object:
    """Ask for more room, as a user does; return the PersistentVolume once it says so."""
    more = {"spec": {"resources": {"requests": {"storage": size}}}}
    own.api.merge("PersistentVolumeClaim", own.namespace, claim, more)
    name = own.bound(claim)["metadata"]["name"]

    def has_grown(volume: Object | None) -> bool:
        return volume is not None and volume["spec"]["capacity"]["storage"] == size

    found = own.api.wait("PersistentVolume", "", name, has_grown, timeout_s=PATIENCE_S)
    assert found is not None
    return found


def awaits_its_node(claim: Object | None) -> bool:
    conditions = ((claim or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] == "FileSystemResizePending" and c["status"] == "True" for c in conditions)


def size_mib(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_blocks * status.f_frsize // MIB


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
def test_a_mounted_file_system_grows(own: User, fs_type: str) -> None:
    cls = f"{own.namespace}-{fs_type}"
    own.api.create(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": cls},
            "provisioner": DRIVER,
            "parameters": {"csi.storage.k8s.io/fstype": fs_type},
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": True,
        }
    )
    own.claim("a", "320Mi", storageClassName=cls)
    with own.mounted("a", "node-1") as directory:
        wanted = fill(directory, 6, megabytes=8)
        assert size_mib(directory) <= 320
        volume = ask_for(own, "a", "640Mi")
        own.api.wait("PersistentVolumeClaim", own.namespace, "a", awaits_its_node)
        node = own.release.node("node-1")
        assert node.calls.expand(volume, 640 * MIB) == 640 * MIB
        # What is asked again is answered again.
        assert node.calls.expand(volume, 640 * MIB) == 640 * MIB
        assert 560 <= size_mib(directory) <= 640
        assert digest(directory) == wanted
        fill(directory, 7, megabytes=200)
        (directory / "more").write_bytes(bytes(200 * MIB))
    own.api.delete("StorageClass", "", cls)


def test_ext4_grows_before_it_is_mounted_again(own: User) -> None:
    own.claim("a", "64Mi")
    with own.mounted("a", "node-2") as directory:
        wanted = fill(directory, 8, megabytes=8)
    ask_for(own, "a", "256Mi")
    with own.mounted("a") as directory:
        assert 200 <= size_mib(directory) <= 256
        assert digest(directory) == wanted

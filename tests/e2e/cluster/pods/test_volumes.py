"""Claims under real pods that are not root: written, made into images, restored, grown."""

from __future__ import annotations

import pytest
from tests.e2e.cluster.pods.workloads import (
    DEVICE,
    DIRECTORY,
    FS_GROUP,
    USER,
    PodUser,
    identity,
)
from tests.e2e.cluster.release import DRIVER
from tests.e2e.cluster.users import PATIENCE_S
from tests.integration.service_api import Object

pytestmark = pytest.mark.root

MIB = 1 << 20
#: The chart's own, whose snapshots become backing images.
IMAGES = "longhorn-backing-image"


def test_what_one_pod_wrote_another_reads_on_another_node(own: PodUser) -> None:
    """A file becomes a backing image while its pod runs, and is read from a restored claim."""
    own.claim("source")
    own.start("writer", "source", node="node-0")
    file = f"{DIRECTORY}/file"
    wrote = own.run("writer", f"head -c {8 * MIB} /dev/urandom > {file}; sync; sha256sum {file}")
    assert own.run("writer", f"stat -c '%u %g' {file}").split() == [str(USER), str(FS_GROUP)]
    own.snapshot("image", "source", IMAGES)
    own.image_of("image")
    own.claim("restored", "128Mi", snapshot="image")
    own.start("reader", "restored", node="node-1")
    assert own.run("reader", f"sha256sum {file}") == wrote
    own.run("reader", f"echo more >> {file}")
    assert own.run("writer", f"sha256sum {file}") == wrote


def test_a_block_device_becomes_an_image_and_a_device_again(own: PodUser) -> None:
    """A pod that is not root writes its device; another pod's restored device holds the same."""
    own.claim("source", volumeMode="Block")
    own.start("writer", "source")
    sha = f"head -c {8 * MIB} {DEVICE} | sha256sum"
    fill = f"dd if=/dev/urandom of={DEVICE} bs=1M count=8 conv=fsync"
    wrote = own.run("writer", f"{fill} 2>/dev/null; id -u; {sha}")
    assert wrote.startswith(f"{USER}\n")
    own.snapshot("image", "source", IMAGES)
    own.image_of("image")
    own.claim("restored", snapshot="image", volumeMode="Block")
    own.start("reader", "restored")
    assert own.run("reader", f"id -u; {sha}") == wrote


# Not ext4: growing it while it is mounted takes CAP_SYS_RESOURCE, which nobody has on the machines
# that run these tests. xfs takes CAP_SYS_ADMIN.
@pytest.mark.parametrize("mode", ["Filesystem", "Block"])
def test_a_volume_grows_under_its_pod(own: PodUser, mode: str) -> None:
    """A claim is edited, and its pod has more room without having been restarted."""
    is_block = mode == "Block"
    cls = xfs_class(own)
    own.claim("a", "320Mi", storageClassName=cls, volumeMode=mode)
    before = own.start("user", "a")
    size = f"blockdev --getsize64 {DEVICE}" if is_block else f"stat -fc '%b %S' {DIRECTORY}"

    def size_mib() -> int:
        numbers = [int(word) for word in own.run("user", size).split()]
        return numbers[0] * (1 if is_block else numbers[1]) // MIB

    assert 200 < size_mib() <= 320
    more = {"spec": {"resources": {"requests": {"storage": "640Mi"}}}}
    own.api.merge("PersistentVolumeClaim", own.namespace, "a", more)
    own.api.wait("PersistentVolumeClaim", own.namespace, "a", _has_grown, timeout_s=PATIENCE_S)
    assert 520 < size_mib() <= 640
    if not is_block:
        own.run("user", f"head -c {400 * MIB} /dev/zero > {DIRECTORY}/more")
    assert identity(own.ready_pod("user")) == identity(before)
    own.api.delete("StorageClass", "", cls)


def test_two_pods_of_a_node_share_a_claim(own: PodUser) -> None:
    """A second pod has the same volume, read-only as it asked; the first one's end leaves it."""
    own.claim("a")
    node = own.start("writer", "a")["spec"]["nodeName"]
    own.run("writer", f"echo here > {DIRECTORY}/file")
    spec = own.pod_spec({"persistentVolumeClaim": {"claimName": "a", "readOnly": True}})
    assert own.start_of("reader", spec)["spec"]["nodeName"] == node
    own.end("writer")
    assert own.run("reader", f"cat {DIRECTORY}/file") == "here\n"
    assert own.run("reader", f"touch {DIRECTORY}/file 2>/dev/null || echo refused") == "refused\n"


def test_a_generic_ephemeral_volume_goes_with_its_pod(own: PodUser) -> None:
    """A volume that is a pod's own is made with it, and deleted after it."""
    claim = {
        "storageClassName": "longhorn",
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "64Mi"}},
    }
    spec = own.pod_spec({"ephemeral": {"volumeClaimTemplate": {"spec": claim}}})
    own.start_of("a", spec)
    own.run("a", f"echo here > {DIRECTORY}/file")
    volume = own.bound("a-v")
    own.end("a")
    own.api.wait_gone("PersistentVolumeClaim", own.namespace, "a-v")
    own.api.wait_gone("PersistentVolume", "", volume["metadata"]["name"])


def xfs_class(own: PodUser) -> str:
    """Make a class of volumes with xfs; return its name."""
    name = f"{own.namespace}-xfs"
    own.api.create(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": DRIVER,
            "parameters": {"csi.storage.k8s.io/fstype": "xfs"},
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": True,
        }
    )
    return name


def _has_grown(claim: Object | None) -> bool:
    return claim is not None and claim["status"]["capacity"]["storage"] == "640Mi"

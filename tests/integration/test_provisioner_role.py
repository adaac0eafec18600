"""Claims become volumes, grow, and go, through the API server alone."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.integration.daemon_process import poll
from tests.integration.service_api import SYSTEM, is_bound

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.daemon_process import ServiceProcess
    from tests.integration.service_api import Namespace, Object

pytestmark = [pytest.mark.root, pytest.mark.xfs]

MIB = 1 << 20
CLAIM, VOLUME = "PersistentVolumeClaim", "PersistentVolume"


def raw_file(service: ServiceProcess, volume: Object) -> Path:
    handle: str = volume["spec"]["csi"]["volumeHandle"]
    return service.pool / "volumes" / handle / "volume.raw"


def fill(service: ServiceProcess, volume: Object) -> bytes:
    """Write something into a volume that nobody has mounted."""
    content = os.urandom(MIB)
    with raw_file(service, volume).open("r+b") as file:
        file.write(content)
        os.fsync(file.fileno())
    return content


def holds(service: ServiceProcess, volume: Object, content: bytes) -> bool:
    with raw_file(service, volume).open("rb") as file:
        return file.read(len(content)) == content


def grow(own: Namespace, name: str, size: str) -> None:
    wanted = {"spec": {"resources": {"requests": {"storage": size}}}}
    own.api.merge(CLAIM, own.name, name, wanted)
    own.api.wait(CLAIM, own.name, name, lambda claim: has_capacity(claim, size))


def has_capacity(claim: Object | None, size: str) -> bool:
    return bool(claim and claim["status"].get("capacity") == {"storage": size})


def size_bytes(mount_point: Path) -> int:
    status = os.statvfs(mount_point)
    return status.f_blocks * status.f_frsize


def test_a_claim_of_the_default_class_gets_a_volume_of_its_own(
    service: ServiceProcess, own: Namespace
) -> None:
    own.claim("a")
    claim = own.bound("a")
    volume = own.volume_of("a")
    assert claim["spec"]["storageClassName"] == "longhorn"
    assert claim["status"]["capacity"] == {"storage": "64Mi"}
    assert claim["status"]["accessModes"] == ["ReadWriteOnce"]
    assert volume["status"]["phase"] == "Bound"
    assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
    assert volume["spec"]["csi"]["fsType"] == "ext4"
    assert volume["spec"]["csi"]["driver"] == "driver.longhorn.io"
    assert volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert raw_file(service, volume).stat().st_size == 64 * MIB
    for reason in ("Provisioning", "ProvisioningSucceeded"):
        assert own.event(CLAIM, "a", reason)


def test_a_class_decides_on_file_system_mount_options_and_policy(own: Namespace) -> None:
    cls = own.storage_class(
        "x",
        parameters={"fsType": "xfs", "numberOfReplicas": "3"},
        mountOptions=["noatime"],
        reclaimPolicy="Retain",
    )
    own.claim("a", "300Mi", storage_class=cls)
    volume = own.volume_of("a")
    assert volume["spec"]["csi"]["fsType"] == "xfs"
    assert volume["spec"]["mountOptions"] == ["noatime"]
    assert volume["spec"]["csi"]["volumeAttributes"] == {"numberOfReplicas": "3"}
    own.delete_claim("a")
    name = volume["metadata"]["name"]
    own.api.wait(VOLUME, "", name, lambda v: (v or {}).get("status", {}).get("phase") == "Released")
    own.api.merge(VOLUME, "", name, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
    own.api.wait_gone(VOLUME, "", name)


def test_a_retained_volume_that_is_deleted_leaves_its_data(
    service: ServiceProcess, own: Namespace
) -> None:
    cls = own.storage_class("keep", reclaimPolicy="Retain")
    own.claim("a", storage_class=cls)
    volume = own.volume_of("a")
    content = fill(service, volume)
    handle = volume["spec"]["csi"]["volumeHandle"]
    own.delete_claim("a")
    own.api.delete(VOLUME, "", volume["metadata"]["name"])
    own.api.wait_gone(VOLUME, "", volume["metadata"]["name"])
    assert holds(service, volume, content)
    own.api.delete("Volume", SYSTEM, handle)
    own.api.wait_gone("Volume", SYSTEM, handle)


@pytest.mark.parametrize(
    ("modes", "mode"),
    [
        pytest.param(("ReadWriteOnce",), "Filesystem", id="rwo"),
        pytest.param(("ReadWriteOncePod",), "Filesystem", id="rwop"),
        pytest.param(("ReadWriteOnce",), "Block", id="block"),
    ],
)
def test_access_and_volume_modes_are_kept(
    own: Namespace, modes: tuple[str, ...], mode: str
) -> None:
    own.claim("a", modes=modes, volumeMode=mode)
    volume = own.volume_of("a")
    assert (tuple(volume["spec"]["accessModes"]), volume["spec"]["volumeMode"]) == (modes, mode)
    assert ("fsType" in volume["spec"]["csi"]) == (mode == "Filesystem")


def test_what_cannot_be_had_is_refused_in_an_event(own: Namespace) -> None:
    twice = {"fsType": "xfs", "csi.storage.k8s.io/fstype": "ext4"}
    own.claim("many", modes=("ReadWriteMany",))
    own.claim("readers", modes=("ReadWriteOnce", "ReadOnlyMany"))
    own.claim("nowhere", storage_class="missing")
    own.claim("odd", storage_class=own.storage_class("odd", parameters={"fsType": "ntfs"}))
    own.claim("twice", storage_class=own.storage_class("twice", parameters=twice))
    own.claim("kind", dataSource={"kind": "VolumeSnapshot", "name": "s"})
    own.claim("chosen", selector={"matchLabels": {"a": "b"}})
    own.claim("limit", resources={"requests": {"storage": "2Mi"}, "limits": {"storage": "1Mi"}})
    said = {
        name: own.event(CLAIM, name, "ProvisioningFailed")
        for name in (
            "many",
            "readers",
            "nowhere",
            "odd",
            "twice",
            "kind",
            "limit",
            "chosen",
        )
    }
    for name in ("many", "readers"):
        assert "a volume lies on one node; use ReadWriteOnce" in said[name]
    assert said["nowhere"] == 'storageclass.storage.k8s.io "missing" not found'
    assert "ntfs" in said["odd"]
    assert "more than once" in said["twice"]
    assert "spec.selector is not supported" in said["chosen"]
    assert "write apiGroup: snapshot.storage.k8s.io" in said["kind"]
    assert not any(is_bound(own.api.get(CLAIM, own.name, name)) for name in said)


def test_a_claim_whose_class_comes_later_is_bound_then(own: Namespace) -> None:
    own.claim("a", storage_class=f"{own.name}-later")
    own.event(CLAIM, "a", "ProvisioningFailed")
    own.storage_class("later")
    assert own.bound("a")


def test_a_claim_of_another_driver_is_left_alone(own: Namespace) -> None:
    cls = own.storage_class("other")
    own.api.delete("StorageClass", "", cls)
    foreign = own.storage_class("foreign", provisioner="other.example.org")
    own.claim("theirs", storage_class=foreign)
    assert "other.example.org" in own.event(CLAIM, "theirs", "ExternalProvisioning")
    own.claim("ours")
    own.bound("ours")
    claim = own.api.get(CLAIM, own.name, "theirs")
    assert "finalizers" not in claim["metadata"]
    assert claim["status"] == {"phase": "Pending"}


def test_a_claim_that_waits_for_its_first_consumer_is_made_for_a_node(own: Namespace) -> None:
    cls = own.storage_class("wait", volumeBindingMode="WaitForFirstConsumer")
    own.claim("a", storage_class=cls)
    assert "shorthorn mount" in own.event(CLAIM, "a", "WaitForFirstConsumer")
    assert not own.api.get(CLAIM, own.name, "a")["spec"].get("volumeName")
    selected = {"volume.kubernetes.io/selected-node": "here"}
    own.api.merge(CLAIM, own.name, "a", {"metadata": {"annotations": selected}})
    assert own.bound("a")


def test_an_unmounted_volume_grows(service: ServiceProcess, own: Namespace) -> None:
    own.claim("a")
    volume = own.volume_of("a")
    grow(own, "a", "128Mi")
    assert raw_file(service, volume).stat().st_size == 128 * MIB
    assert own.volume_of("a")["spec"]["capacity"] == {"storage": "128Mi"}
    assert "128Mi" in own.event(CLAIM, "a", "VolumeResizeSuccessful")


@pytest.mark.parametrize(
    ("fs_type", "small", "large"),
    [pytest.param("btrfs", 256, 300, id="btrfs"), pytest.param("xfs", 300, 400, id="xfs")],
)
def test_a_mounted_volume_grows_with_its_file_system(
    service: ServiceProcess, own: Namespace, fs_type: str, small: int, large: int
) -> None:
    cls = own.storage_class("fs", allowVolumeExpansion=True, parameters={"fsType": fs_type})
    own.claim("a", f"{small}Mi", storage_class=cls)
    target = service.data_dir.parent / f"{own.name}-grow"
    assert service.run("mount", f"{own.name}/a", str(target)).returncode == 0
    try:
        before_bytes = size_bytes(target)
        grow(own, "a", f"{large}Mi")
        assert size_bytes(target) - before_bytes == (large - small) * MIB
    finally:
        assert service.run("umount", str(target)).returncode == 0


def test_an_ext4_has_grown_at_the_latest_when_it_is_mounted_again(
    service: ServiceProcess, own: Namespace
) -> None:
    """The kernel grows a mounted ext4 only for a process with CAP_SYS_RESOURCE."""
    own.claim("a")
    target = service.data_dir.parent / f"{own.name}-again"
    assert service.run("mount", f"{own.name}/a", str(target)).returncode == 0
    wanted = {"spec": {"resources": {"requests": {"storage": "256Mi"}}}}
    own.api.merge(CLAIM, own.name, "a", wanted)
    assert service.run("umount", str(target)).returncode == 0
    own.api.wait(CLAIM, own.name, "a", lambda claim: has_capacity(claim, "256Mi"))
    assert service.run("mount", f"{own.name}/a", str(target)).returncode == 0
    try:
        assert size_bytes(target) > 200 * MIB
    finally:
        assert service.run("umount", str(target)).returncode == 0


def test_a_class_that_forbids_growth_is_obeyed(own: Namespace) -> None:
    cls = own.storage_class("fixed", allowVolumeExpansion=False)
    own.claim("a", storage_class=cls)
    own.bound("a")
    wanted = {"spec": {"resources": {"requests": {"storage": "128Mi"}}}}
    own.api.merge(CLAIM, own.name, "a", wanted)
    assert "allowVolumeExpansion" in own.event(CLAIM, "a", "VolumeResizeFailed")
    assert own.bound("a")["status"]["capacity"] == {"storage": "64Mi"}


def test_a_claim_may_begin_as_a_copy_of_another(service: ServiceProcess, own: Namespace) -> None:
    own.claim("copy", claim="source")
    assert "does not exist" in own.event(CLAIM, "copy", "ProvisioningFailed")
    own.claim("source")
    own.bound("source")
    own.bound("copy")
    content = fill(service, own.volume_of("source"))
    own.claim("larger", "128Mi", claim="source")
    assert holds(service, own.volume_of("larger"), content)
    assert not holds(service, own.volume_of("copy"), content)
    own.claim("smaller", "32Mi", claim="source")
    assert own.event(CLAIM, "smaller", "ProvisioningFailed")
    own.claim("block", claim="source", volumeMode="Block")
    assert "volumeMode" in own.event(CLAIM, "block", "ProvisioningFailed")


def test_a_mounted_claim_goes_when_it_is_unmounted(service: ServiceProcess, own: Namespace) -> None:
    own.claim("a")
    volume = own.volume_of("a")
    target = service.data_dir.parent / f"{own.name}-busy"
    assert service.run("mount", f"{own.name}/a", str(target)).returncode == 0
    own.delete_claim("a", wait=False)
    said = own.event(CLAIM, "a", "InUse")
    assert str(target) in said
    assert "shorthorn umount" in said
    (target / "still").write_text("usable")
    assert service.run("umount", str(target)).returncode == 0
    own.api.wait_gone(CLAIM, own.name, "a")
    own.api.wait_gone(VOLUME, "", volume["metadata"]["name"])
    assert not raw_file(service, volume).exists()


def test_a_claim_that_is_deleted_while_it_is_made_leaves_nothing(
    service: ServiceProcess, own: Namespace
) -> None:
    names = [f"c{number}" for number in range(10)]
    for name in names:
        own.claim(name)
        own.delete_claim(name, wait=False)
    for name in names:
        own.api.wait_gone(CLAIM, own.name, name)
    poll(lambda: not own.api.list("Volume", SYSTEM), what="volumes of deleted claims")
    poll(lambda: not list((service.pool / "volumes").iterdir()), what="their data")
    poll(lambda: not own.api.list(VOLUME), what="their persistent volumes")


def test_thirty_claims_from_one_image_are_thirty_volumes(
    service: ServiceProcess, own: Namespace
) -> None:
    own.claim("golden", "32Mi")
    content = fill(service, own.volume_of("golden"))
    own.snapshot("image", claim="golden", cls=own.snapshot_class("bi", type="bi"))
    own.ready("image")
    names = [f"copy-{number}" for number in range(30)]
    own.api.client  # noqa: B018 - made before the threads share it
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: own.claim(name, "32Mi", snapshot="image"), names))
    handles = {own.volume_of(name)["spec"]["csi"]["volumeHandle"] for name in names}
    assert len(handles) == 30
    assert all(holds(service, own.volume_of(name), content) for name in names)
    assert len(own.api.list("Volume", SYSTEM)) == 31
    assert len(list((service.pool / "volumes").iterdir())) == 31
    shared = subprocess.run(["df", "--output=used", service.pool], capture_output=True, check=True)
    assert int(shared.stdout.split()[-1]) < 200 * 1024


def test_a_volume_that_an_administrator_made_is_bound_and_let_go(own: Namespace) -> None:
    own.claim("first", storage_class=own.storage_class("keep", reclaimPolicy="Retain"))
    volume = own.volume_of("first")
    own.delete_claim("first")
    name = volume["metadata"]["name"]
    own.api.wait(VOLUME, "", name, lambda v: (v or {})["status"].get("phase") == "Released")
    own.api.delete(VOLUME, "", name)
    own.api.wait_gone(VOLUME, "", name)
    own.api.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{own.name}-static"},
            "spec": {
                **{k: v for k, v in volume["spec"].items() if k not in ("claimRef",)},
                "claimRef": {"namespace": own.name, "name": "second"},
                "persistentVolumeReclaimPolicy": "Delete",
            },
        }
    )
    own.claim("second", storage_class="", volumeName=f"{own.name}-static")
    assert own.bound("second")["spec"]["volumeName"] == f"{own.name}-static"
    own.delete_claim("second")
    own.api.wait_gone(VOLUME, "", f"{own.name}-static")


def test_a_size_that_no_disk_can_have_is_refused_on_the_claim(own: Namespace) -> None:
    own.claim("a", "99999999999999999999Gi")
    assert "out of range" in own.event(CLAIM, "a", "ProvisioningFailed")


def test_growing_to_a_size_that_no_disk_can_have_is_refused_on_the_claim(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    wanted = {"spec": {"resources": {"requests": {"storage": "99999999999999Gi"}}}}
    own.api.merge(CLAIM, own.name, "a", wanted)
    assert "out of range" in own.event(CLAIM, "a", "VolumeResizeFailed")
    assert own.bound("a")["status"]["capacity"] == {"storage": "64Mi"}


def test_a_snapshot_whose_deletion_waits_for_a_restore_says_so(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    own.snapshot("s", claim="a", cls=own.snapshot_class("c", type="snap"))
    own.ready("s")
    own.claim("b", modes=("ReadOnlyMany",), snapshot="s")  # this can never be had
    own.event(CLAIM, "b", "ProvisioningFailed")
    own.delete_snapshot("s", wait=False)
    assert f"{own.name}/b" in own.event("VolumeSnapshot", "s", "SnapshotDeletePending")
    own.delete_claim("b")
    own.api.wait_gone("VolumeSnapshot", own.name, "s")


def test_a_claim_that_names_a_volume_which_is_not_there_yet_waits_for_it(own: Namespace) -> None:
    own.claim("a", volumeName="not-there-yet")
    claim = own.api.wait(CLAIM, own.name, "a", lambda c: bool(c and c.get("status")))
    assert claim is not None
    assert claim["status"]["phase"] == "Pending"


def test_a_volume_whose_claim_is_half_named_harms_nobody(
    service: ServiceProcess, own: Namespace
) -> None:
    """The API accepts it, as Kubernetes does, and every start meets it again."""
    for name, claim in (("half", {"name": "x"}), ("other-half", {"namespace": own.name})):
        service.api.create(
            {
                "apiVersion": "v1",
                "kind": VOLUME,
                "metadata": {"name": f"{own.name}-{name}"},
                "spec": {
                    "capacity": {"storage": "64Mi"},
                    "accessModes": ["ReadWriteOnce"],
                    "claimRef": claim,
                    "csi": {"driver": "driver.longhorn.io", "volumeHandle": name},
                },
            }
        )
    own.claim("a")
    own.bound("a")
    for name in ("half", "other-half"):
        service.api.delete(VOLUME, "", f"{own.name}-{name}")

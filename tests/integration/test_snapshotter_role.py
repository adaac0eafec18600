"""VolumeSnapshots get contents and handles, and go in whatever order users delete things."""

from __future__ import annotations

import hashlib
import os
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes.image_server import serve
from tests.integration.daemon_process import poll
from tests.integration.service_api import SYSTEM, error_of, is_bound, is_ready

if TYPE_CHECKING:
    from tests.integration.daemon_process import ServiceProcess
    from tests.integration.service_api import Namespace, Object

pytestmark = [pytest.mark.root, pytest.mark.xfs]

MIB = 1 << 20
CLAIM, SNAPSHOT, CONTENT = "PersistentVolumeClaim", "VolumeSnapshot", "VolumeSnapshotContent"
ALLOW_MODE_CHANGE = "snapshot.storage.kubernetes.io/allow-volume-mode-change"


def write(service: ServiceProcess, own: Namespace, claim: str, content: bytes) -> str:
    """Write into the volume of a claim; return its handle."""
    handle: str = own.volume_of(claim)["spec"]["csi"]["volumeHandle"]
    with (service.pool / "volumes" / handle / "volume.raw").open("r+b") as file:
        file.write(content)
        os.fsync(file.fileno())
    return handle


def read(service: ServiceProcess, own: Namespace, claim: str, length: int) -> bytes:
    handle: str = own.volume_of(claim)["spec"]["csi"]["volumeHandle"]
    with (service.pool / "volumes" / handle / "volume.raw").open("rb") as file:
        return file.read(length)


def error(own: Namespace, name: str) -> str:
    return own.api.wait_error(own.name, name)


def is_empty(own: Namespace, kind: str, namespace: str = "") -> bool:
    return not own.api.list(kind, namespace)


def image_of(snapshot: Object) -> str:
    return f"snapshot-{snapshot['metadata']['uid']}"


@pytest.mark.parametrize(
    ("parameters", "scheme"),
    [
        pytest.param({"type": "bi"}, "bi://", id="bi"),
        pytest.param({"type": "bi", "export_type": "qcow2"}, "bi://", id="qcow2"),
        pytest.param({"type": "snap"}, "snap://", id="snap"),
        pytest.param({}, "snap://", id="nothing said"),
    ],
)
def test_a_snapshot_holds_what_the_volume_held(
    service: ServiceProcess, own: Namespace, parameters: dict[str, Any], scheme: str
) -> None:
    own.claim("a")
    write(service, own, "a", b"before")
    own.snapshot("s", claim="a", cls=own.snapshot_class("c", **parameters))
    status = own.ready("s")["status"]
    assert status["restoreSize"] == "64Mi"
    assert status["creationTime"]
    content = own.content_of("s")
    assert content["status"]["snapshotHandle"].startswith(scheme)
    assert content["status"]["readyToUse"]
    assert content["spec"]["sourceVolumeMode"] == "Filesystem"
    write(service, own, "a", b"behind")
    own.claim("copy", "128Mi", snapshot="s")
    assert read(service, own, "copy", 6) == b"before"
    for reason in ("CreatingSnapshot", "SnapshotReady"):
        assert own.event(SNAPSHOT, "s", reason)
    own.claim("small", "32Mi", snapshot="s")
    assert "less than the size 64Mi" in own.event(CLAIM, "small", "ProvisioningFailed")


def test_a_snapshot_waits_for_what_it_needs(own: Namespace) -> None:
    own.snapshot("s", claim="a", cls=f"{own.name}-c")
    assert error(own, "s") == f"VolumeSnapshotClass {own.name}-c does not exist"
    assert own.event(SNAPSHOT, "s", "GetSnapshotClassFailed")
    own.snapshot_class("c", type="bi")
    own.event(SNAPSHOT, "s", "SnapshotPending", holding="does not exist")
    own.claim("a")
    assert error_of(own.ready("s")) == ""


def test_a_snapshot_without_a_class_takes_the_default_one(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    own.snapshot("none", claim="a")
    assert "0 classes are default" in error(own, "none")
    cls = own.snapshot_class("c", is_default=True, type="bi")
    assert own.ready("none")
    second = own.snapshot_class("d", is_default=True, type="bi")
    own.snapshot("two", claim="a")
    assert "2 classes are default" in error(own, "two")
    own.api.delete("VolumeSnapshotClass", "", second)
    assert own.ready("two")
    assert own.content_of("two")["spec"]["volumeSnapshotClassName"] == cls


def test_a_class_that_asks_for_nonsense_fails_on_the_snapshot(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    own.snapshot("s", claim="a", cls=own.snapshot_class("c", type="bi", export_type="vmdk"))
    assert "vmdk" in error(own, "s")
    assert own.event(SNAPSHOT, "s", "SnapshotContentCheckandUpdateFailed")
    assert not own.api.list("BackingImage", SYSTEM)


def test_a_class_that_is_gone_is_needed_no_more(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    cls = own.snapshot_class("c", type="bi")
    own.snapshot("s", claim="a", cls=cls)
    image = image_of(own.ready("s"))
    own.api.delete("VolumeSnapshotClass", "", cls)
    own.delete_snapshot("s")
    own.api.wait_gone("BackingImage", SYSTEM, image)


def test_a_class_that_goes_while_a_snapshot_is_made_changes_nothing(own: Namespace) -> None:
    """Without its class, a snapshot of type bi would be taken for one of type snap."""
    own.claim("a")
    own.bound("a")
    for number in range(6):
        cls = own.snapshot_class(f"c{number}", type="bi")
        own.snapshot(f"s{number}", claim="a", cls=cls)
        name = f"snapcontent-{own.api.get(SNAPSHOT, own.name, f's{number}')['metadata']['uid']}"
        own.api.wait(CONTENT, "", name, lambda found: found is not None)
        own.api.delete("VolumeSnapshotClass", "", cls)
        if number % 2:
            own.delete_snapshot(f"s{number}")
            own.api.wait_gone(CONTENT, "", name)
        else:
            assert own.content_of(f"s{number}")["status"]["snapshotHandle"].startswith("bi://")
    assert not own.api.list("Snapshot", SYSTEM)
    assert len(own.api.list("BackingImage", SYSTEM)) == 3


def test_a_retained_snapshot_leaves_its_content_and_image(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    own.snapshot("s", claim="a", cls=own.snapshot_class("c", "Retain", type="bi"))
    content = own.content_of("s")
    image = image_of(own.ready("s"))
    own.delete_snapshot("s")
    name = content["metadata"]["name"]
    assert own.api.get(CONTENT, "", name)["status"]["readyToUse"]
    own.api.delete(CONTENT, "", name)
    own.api.wait_gone(CONTENT, "", name)
    assert own.api.get("BackingImage", SYSTEM, image)["status"]["uuid"]
    own.api.delete("BackingImage", SYSTEM, image)
    own.api.wait_gone("BackingImage", SYSTEM, image)


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_a_content_that_is_deleted_first_waits_for_its_snapshot(
    service: ServiceProcess, own: Namespace, policy: str
) -> None:
    own.claim("a")
    write(service, own, "a", b"precious")
    own.snapshot("s", claim="a", cls=own.snapshot_class("c", policy, type="bi"))
    name = own.content_of("s")["metadata"]["name"]
    image = image_of(own.ready("s"))
    own.api.delete(CONTENT, "", name)
    own.api.wait_event(CONTENT, "default", name, "InUse")
    own.claim("copy", snapshot="s")
    assert read(service, own, "copy", 8) == b"precious"
    own.delete_snapshot("s")
    own.api.wait_gone(CONTENT, "", name)
    if policy == "Delete":
        own.api.wait_gone("BackingImage", SYSTEM, image)
    else:
        own.api.delete("BackingImage", SYSTEM, image)
        own.api.wait_gone("BackingImage", SYSTEM, image)


def test_a_namespace_goes_with_everything_in_it(service: ServiceProcess, own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    for kind in ("bi", "snap"):
        own.snapshot(kind, claim="a", cls=own.snapshot_class(kind, type=kind))
        own.claim(f"copy-{kind}", snapshot=kind)
    own.snapshot("hopeless", claim="missing", cls=f"{own.name}-bi")
    own.claim("waits", snapshot="hopeless")
    own.bound("copy-bi")
    own.snapshot("late", claim="copy-bi", cls=f"{own.name}-bi")
    own.api.delete("Namespace", "", own.name)
    own.api.wait_gone("Namespace", "", own.name)
    for kind in ("PersistentVolume", CONTENT):
        poll(partial(is_empty, own, kind), what=f"every {kind} gone")
    for kind in ("Volume", "Snapshot", "BackingImage", "ImageCopy"):
        poll(partial(is_empty, own, kind, SYSTEM), what=f"every {kind} gone")
    own.api.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": own.name}}
    )  # for the fixture to remove


def test_a_source_may_go_before_its_snapshot(service: ServiceProcess, own: Namespace) -> None:
    own.claim("a")
    write(service, own, "a", b"kept")
    for kind in ("bi", "snap"):
        own.snapshot(kind, claim="a", cls=own.snapshot_class(kind, type=kind))
        own.ready(kind)
    own.delete_claim("a")
    for kind in ("bi", "snap"):
        own.claim(f"copy-{kind}", snapshot=kind)
        assert read(service, own, f"copy-{kind}", 4) == b"kept"


def test_a_snapshot_that_is_deleted_while_it_is_made_leaves_nothing(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    cls = own.snapshot_class("bi", type="bi")
    names = [f"s{number}" for number in range(10)]
    for name in names:
        own.snapshot(name, claim="a", cls=cls)
        own.delete_snapshot(name, wait=False)
    for name in names:
        own.api.wait_gone(SNAPSHOT, own.name, name)
    poll(lambda: not own.api.list(CONTENT), what="contents gone")
    poll(lambda: not own.api.list("BackingImage", SYSTEM), what="images gone")


def test_a_snapshot_that_is_being_restored_waits(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    own.snapshot("s", claim="a", cls=own.snapshot_class("c", type="bi"))
    own.ready("s")
    wait = own.storage_class("wait", volumeBindingMode="WaitForFirstConsumer")
    own.claim("copy", snapshot="s", storage_class=wait)
    own.event(CLAIM, "copy", "WaitForFirstConsumer")
    own.delete_snapshot("s", wait=False)
    assert own.api.get(SNAPSHOT, own.name, "s")
    own.delete_claim("copy")
    own.api.wait_gone(SNAPSHOT, own.name, "s")


def test_a_change_of_volume_mode_needs_an_administrators_word(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    own.snapshot("s", claim="a", cls=own.snapshot_class("c", type="bi"))
    own.ready("s")
    own.claim("block", snapshot="s", volumeMode="Block")
    assert ALLOW_MODE_CHANGE in own.event(CLAIM, "block", "ProvisioningFailed")
    name = own.content_of("s")["metadata"]["name"]
    annotations = {ALLOW_MODE_CHANGE: "true"}
    own.api.merge(CONTENT, "", name, {"metadata": {"annotations": annotations}})
    assert own.bound("block")


def test_an_image_that_exists_is_bound_by_its_handle(
    service: ServiceProcess, own: Namespace
) -> None:
    own.claim("a")
    write(service, own, "a", b"golden")
    own.snapshot("first", claim="a", cls=own.snapshot_class("c", type="bi", export_type="qcow2"))
    handle = own.content_of("first")["status"]["snapshotHandle"]
    own.content("again", handle, snapshot="second", policy="Retain")
    own.snapshot("second", content=f"{own.name}-again")
    assert own.ready("second")["status"]["restoreSize"] == "64Mi"
    own.claim("copy", snapshot="second")
    assert read(service, own, "copy", 6) == b"golden"


def test_a_handle_that_is_wrong_fails_on_the_snapshot(own: Namespace) -> None:
    own.claim("a")
    volume = own.volume_of("a")["spec"]["csi"]["volumeHandle"]
    export = "bi://backing?backingImageDataSourceType=export-from-volume&backingImage=wrong"
    handles = {
        "claim": f"{export}&volume-name=a&export-type=qcow2",
        "format": f"{export}&volume-name={volume}&export-type=vmdk",
        "source": "bi://backing?backingImageDataSourceType=upload&backingImage=wrong",
        "absent": "bi://backing?backingImage=wrong",
        "unknown": "who://knows",
    }
    for name, handle in handles.items():
        own.content(name, handle, snapshot=name)
        own.snapshot(name, content=f"{own.name}-{name}")
    said = {name: error(own, name) for name in handles}
    assert f"write volume-name={volume}" in said["claim"]
    assert "vmdk" in said["format"]
    assert "upload" in said["source"]
    assert all(said.values())
    for name in handles:
        assert own.event(SNAPSHOT, name, "SnapshotContentCheckandUpdateFailed")
        assert not is_ready(own.api.get(SNAPSHOT, own.name, name))
    assert not own.api.list("BackingImage", SYSTEM)


def test_contents_and_snapshots_that_do_not_name_each_other_stay_apart(own: Namespace) -> None:
    own.claim("a")
    own.bound("a")
    own.snapshot("first", claim="a", cls=own.snapshot_class("c", type="bi"))
    handle = own.content_of("first")["status"]["snapshotHandle"]
    own.snapshot("early", content=f"{own.name}-late")
    assert "does not exist" in error(own, "early")
    own.content("late", handle, snapshot="early", policy="Retain")
    assert own.ready("early")
    own.content("theirs", handle, snapshot="other", policy="Retain")
    own.snapshot("thief", content=f"{own.name}-theirs")
    assert f"belongs to VolumeSnapshot {own.name}/other" in error(own, "thief")
    assert own.event(SNAPSHOT, "thief", "SnapshotContentMisbound")
    reference = {"name": "reborn", "namespace": own.name, "uid": "of-another-life"}
    own.content("old", handle, snapshot="reborn", policy="Retain", volumeSnapshotRef=reference)
    own.snapshot("reborn", content=f"{own.name}-old")
    assert "bound to another VolumeSnapshot" in error(own, "reborn")


def test_an_image_is_downloaded_on_demand(service: ServiceProcess, own: Namespace) -> None:
    content = random.Random(7).randbytes(3 * MIB)
    with serve(content, name="disk.raw") as served:
        checksum = hashlib.sha512(content).hexdigest()
        handle = (
            "bi://backing?backingImageDataSourceType=download&backingImage=web"
            f"&url={served.url}&backingImageChecksum="
        )
        own.content("good", handle + checksum, snapshot="good")
        own.snapshot("good", content=f"{own.name}-good")
        own.ready("good")
        assert served.requests == []
        own.claim("a", snapshot="good")
        assert read(service, own, "a", 3 * MIB) == content
        assert own.api.get("BackingImage", SYSTEM, "web")["status"]["checksum"] == checksum
        own.content("bad", handle + "0" * 128, snapshot="bad")
        own.snapshot("bad", content=f"{own.name}-bad")
        assert "checksum" in error(own, "bad")
        own.delete_snapshot("good")
        own.api.wait_gone("BackingImage", SYSTEM, "web")
    assert read(service, own, "a", 3 * MIB) == content


def test_a_download_with_another_checksum_fails_on_the_claim(own: Namespace) -> None:
    with serve(b"other bytes" * 1000, name="disk.raw") as served:
        handle = (
            "bi://backing?backingImageDataSourceType=download&backingImage=web"
            f"&url={served.url}&backingImageChecksum={'0' * 128}"
        )
        own.content("c", handle, snapshot="s")
        own.snapshot("s", content=f"{own.name}-c")
        own.ready("s")
        own.claim("a", snapshot="s")
        said = own.event(CLAIM, "a", "ProvisioningFailed", holding="checksum mismatch")
        assert hashlib.sha512(b"other bytes" * 1000).hexdigest() in said
        assert not is_bound(own.api.get(CLAIM, own.name, "a"))
        assert len(served.requests) == 1


def test_a_volume_is_exported_on_demand(service: ServiceProcess, own: Namespace) -> None:
    own.claim("a")
    volume = write(service, own, "a", b"on demand")
    handle = (
        "bi://backing?backingImageDataSourceType=export-from-volume&backingImage=wanted"
        f"&volume-name={volume}&export-type=qcow2"
    )
    own.content("c", handle, snapshot="s")
    own.snapshot("s", content=f"{own.name}-c")
    own.ready("s")
    own.claim("copy", snapshot="s")
    assert read(service, own, "copy", 9) == b"on demand"
    assert own.api.get("BackingImage", SYSTEM, "wanted")["status"]["uuid"]


def test_a_content_that_names_no_snapshot_harms_nobody(
    service: ServiceProcess, own: Namespace
) -> None:
    """Both fields must be there, which two empty texts are: the API accepts it."""
    name = f"{own.name}-nobodys"
    service.api.create(
        {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotContent",
            "metadata": {"name": name},
            "spec": {
                "deletionPolicy": "Retain",
                "driver": "driver.longhorn.io",
                "source": {"snapshotHandle": "snap://none/none"},
                "volumeSnapshotRef": {"name": "", "namespace": ""},
            },
        }
    )
    own.claim("a")
    own.snapshot("s", claim="a", cls=own.snapshot_class("snap", type="snap"))
    own.ready("s")
    assert b"KeyError" not in service.log.read_bytes()
    service.api.delete("VolumeSnapshotContent", "", name)

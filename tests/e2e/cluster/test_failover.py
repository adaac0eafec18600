"""What happens to work that is under way when a program, a node or a line fails.

Each test ends with the right data and empty pools. What was killed runs again afterwards.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.cluster.failures import (
    arrived_bytes,
    by_and_by,
    leader_of,
    mended,
    sender_to,
    standing_still,
    tended,
)
from tests.e2e.cluster.release import NAMESPACE, Node, Release
from tests.e2e.cluster.test_nodes import MIB, digest, fill, ready_nodes
from tests.e2e.cluster.users import User
from tests.integration.daemon_process import poll
from tests.integration.service_api import Object, is_bound, is_ready

pytestmark = pytest.mark.root

IMAGE_MIB = 384
#: So that most of a transfer is still to come when it is noticed, and no checkpoint comes too late;
#: and what it goes on with, once something was done to it.
MIB_PER_S, MIB_PER_S_LATER = 25, 150
#: Another leads 15 s after the last sign of life of the one before.
TAKE_OVER_S = 40.0
AWAY_S = 60.0
#: The states of a copy whose content is captured.
CAPTURED = {"starting", "in-progress", "ready"}


@pytest.fixture(autouse=True)
def whole(release: Release) -> Iterator[None]:
    with mended(release):
        yield


def nothing_left(release: Release, own: User) -> None:
    own.clear()
    poll(lambda: release.left() == [], what=f"an empty pool, and not {release.left()}")


def snapshot_object(own: User, name: str) -> Object:
    return own.api.get("VolumeSnapshot", own.namespace, name)


def begin_image(own: User, name: str, claim: str, **parameters: str) -> str:
    """Make a snapshot of type bi; return its image's name once the image has a copy."""
    made = own.snapshot(name, claim, own.snapshot_class("bi", type="bi", **parameters))
    image = f"snapshot-{made['metadata']['uid']}"
    poll(lambda: copies_of(own, image), what=f"a copy of {image}")
    assert not is_ready(snapshot_object(own, name))
    return image


def copies_of(own: User, image: str) -> list[Object]:
    return [c for c in own.api.list("ImageCopy", NAMESPACE) if c["spec"]["image"] == image]


def handle_of(own: User, snapshot: str) -> str:
    """Return the handle that a snapshot has got so far."""
    status = snapshot_object(own, snapshot).get("status") or {}
    content = status.get("boundVolumeSnapshotContentName", "")
    found = own.api.find("VolumeSnapshotContent", "", content) if content else None
    return str(((found or {}).get("status") or {}).get("snapshotHandle") or "")


def ready_once(own: User, snapshot: str) -> str:
    """Wait until a snapshot is ready, and return its handle: the only one that it ever had."""
    handles: set[str] = set()

    def look() -> bool:
        handles.add(handle_of(own, snapshot))
        return is_ready(snapshot_object(own, snapshot))

    poll(look, timeout_s=90, what=f"snapshot {snapshot}")
    handles.add(handle_of(own, snapshot))
    (handle,) = handles - {""}
    return handle


def restored_is(own: User, snapshot: str, node: str, wanted: str) -> None:
    own.claim("copy", "400Mi", snapshot=snapshot)
    with own.mounted("copy", node) as directory:
        assert digest(directory) == wanted


# ---- Programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("leads", ["shorthorn", "csi-snapshotter"])
def test_a_controller_dies_in_mid_snapshot(release: Release, own: User, leads: str) -> None:
    """The one that makes images, and the one that the leading snapshotter has asked."""
    own.claim("source", "320Mi")
    with own.mounted("source", "node-0") as directory:
        wanted = fill(directory, 1)
        old = release.leader(leads)
        with standing_still(release.node("node-0").driver):
            image = begin_image(own, "s", "source", export_type="qcow2")
            old.driver.kill()
        poll(
            lambda: release.leading(leads) not in (None, old),
            timeout_s=TAKE_OVER_S,
            what="another leader",
        )
        handle = ready_once(own, "s")
        before = snapshot_object(own, "s")["status"]
        old.kill()
        old.start()
        assert release.leader(leads) is not old
    restored_is(own, "s", "node-1", wanted)
    assert len(own.api.list("BackingImage", NAMESPACE)) == 1
    assert image in handle
    assert handle_of(own, "s") == handle
    assert snapshot_object(own, "s")["status"] == before
    nothing_left(release, own)


def test_the_leader_dies_in_mid_restore(release: Release, own: User) -> None:
    own.claim("source", "320Mi")
    with own.mounted("source", "node-0") as directory:
        wanted = fill(directory, 2)
        own.snapshot("s", "source", own.snapshot_class("bi", type="bi"))
        image = own.image_of("s")["metadata"]["name"]
    old = release.leader()
    own.claim("copy", "400Mi", snapshot="s")
    with standing_still(release.node("node-1").driver):
        own.pod("uses-copy", "copy", "node-1")
        poll(lambda: asked_of(own, image, "node-1"), what="an image that is asked for")
        old.driver.kill()
    poll(lambda: release.leader() is not old, timeout_s=TAKE_OVER_S, what="another leader")
    where = release.node("node-1")
    volume = own.bound("copy")
    assert digest(where.calls.mount(volume)) == wanted
    assert len(volumes_of(own, "copy")) == 1
    where.calls.unmount(volume)
    own.end_use("copy")
    nothing_left(release, own)


def asked_of(own: User, image: str, node: str) -> bool:
    """Whether a node shall have a copy of an image, which a restore there begins with."""
    return any(copy["spec"]["nodeID"] == node for copy in copies_of(own, image))


def volumes_of(own: User, claim: str) -> list[Object]:
    """Return our volumes that were made for a claim."""
    uid = own.api.get("PersistentVolumeClaim", own.namespace, claim)["metadata"]["uid"]
    volumes = own.api.list("Volume", NAMESPACE)
    return [v for v in volumes if uid in v["metadata"]["name"]]


@pytest.mark.parametrize("sidecar", ["csi-provisioner", "csi-snapshotter"])
def test_a_sidecar_dies_in_mid_work(release: Release, own: User, sidecar: str) -> None:
    own.claim("source", "320Mi")
    with own.mounted("source", "node-0") as directory:
        wanted = fill(directory, 3)
        pod = leader_of(release, "csi-snapshotter")
        with standing_still(release.node("node-0").driver):
            image = begin_image(own, "s", "source")
            if sidecar == "csi-snapshotter":
                pod.processes[sidecar].kill()
        assert ready_once(own, "s")
    own.claim("copy", "400Mi", snapshot="s")
    pod = leader_of(release, "csi-provisioner")
    with standing_still(release.node("node-2").driver):
        own.pod("uses-copy", "copy", "node-2")
        poll(lambda: asked_of(own, image, "node-2"), what="an image that is asked for")
        if sidecar == "csi-provisioner":
            pod.processes[sidecar].kill()
    volume = own.bound("copy")
    where = release.node("node-2")
    assert digest(where.calls.mount(volume)) == wanted
    assert leader_of(release, sidecar).processes[sidecar].is_running
    where.calls.unmount(volume)
    own.end_use("copy")
    nothing_left(release, own)


def test_the_snapshot_controller_dies_in_mid_snapshot(release: Release, own: User) -> None:
    own.claim("source", "320Mi")
    with own.mounted("source", "node-0") as directory:
        wanted = fill(directory, 11)
        with standing_still(release.node("node-0").driver):
            image = begin_image(own, "s", "source")
            release.plane.kill("snapshot-controller")
        # From here on the content is fixed, whoever asks for it again.
        poll(lambda: states_of(own, image) & CAPTURED, what="a capture")
        fill(directory, 12)
        release.plane.restart("snapshot-controller")
        assert ready_once(own, "s")
    restored_is(own, "s", "node-0", wanted)
    nothing_left(release, own)


def test_the_resizer_dies_in_mid_expansion(release: Release, own: User) -> None:
    own.claim("a", "64Mi")
    with own.mounted("a", "node-1") as directory:
        wanted = fill(directory, 13)
    volume = own.bound("a")["metadata"]["name"]
    pod = leader_of(release, "csi-resizer")
    with standing_still(release.node("node-1").driver):
        more = {"spec": {"resources": {"requests": {"storage": "96Mi"}}}}
        own.api.merge("PersistentVolumeClaim", own.namespace, "a", more)
        poll(
            lambda: volumes_of(own, "a")[0]["spec"]["capacityBytes"] == 96 * MIB,
            what="an expansion that the node is asked for",
        )
        pod.processes["csi-resizer"].kill()
    poll(lambda: capacity_of(own, volume) == "96Mi", what="a volume that has grown")
    with own.mounted("a") as directory:
        assert digest(directory) == wanted
    nothing_left(release, own)


def capacity_of(own: User, volume: str) -> str:
    return str(own.api.get("PersistentVolume", "", volume)["spec"]["capacity"]["storage"])


def test_a_node_dies_in_mid_export(release: Release, own: User) -> None:
    own.claim("source", "512Mi", volumeMode="Block")
    node = release.node("node-0")
    with own.mounted("source", "node-0") as device:
        scatter(device, 512, blocks=60_000)
        wanted = sum_of(device)
        with standing_still(node.driver):
            image = begin_image(own, "s", "source", export_type="qcow2")
        # From here on the content is fixed; the image is still to be made of it.
        by_and_by(node.driver, lambda: states_of(own, image) & CAPTURED, what="a capture")
        node.kill()
        assert "ready" not in states_of(own, image), "the export was over before the kill"
        write_at(device, 0, b"after the snapshot")
        node.start()
        assert ready_once(own, "s")
    own.claim("copy", "512Mi", snapshot="s", volumeMode="Block")
    with own.mounted("copy", "node-1") as device:
        assert sum_of(device) == wanted
    nothing_left(release, own)


def states_of(own: User, image: str) -> set[str]:
    """Return the states of an image's copies."""
    return {str((c.get("status") or {}).get("state", "")) for c in copies_of(own, image)}


def scatter(device: Path, megabytes: int, *, blocks: int) -> None:
    """Write blocks of 4 KiB far from each other, so that there are as many extents."""
    chosen = random.Random(4).sample(range(0, megabytes * 256, 2), blocks)
    with device.open("r+b", buffering=0) as file:
        for block in chosen:
            os.pwrite(file.fileno(), os.urandom(4096), block * 4096)
        os.fsync(file.fileno())


def write_at(device: Path, offset: int, content: bytes) -> None:
    with device.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), content, offset)
        os.fsync(file.fileno())


def sum_of(device: Path) -> str:
    with device.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


# ---- Image bytes --------------------------------------------------------------------------------


def big_image(own: User, *, copies: int = 1) -> tuple[str, str]:
    """Make snapshot `s` of a raw volume full of random bytes, with copies on so many nodes, from
    node-0 on; return its image's name and the volume's sum.
    """
    own.claim("source", f"{IMAGE_MIB}Mi", volumeMode="Block")
    with own.mounted("source", "node-0") as device:
        with device.open("r+b", buffering=0) as file:
            for _ in range(IMAGE_MIB // 16):
                file.write(os.urandom(16 * MIB))
            os.fsync(file.fileno())
        wanted = sum_of(device)
        own.snapshot("s", "source", own.snapshot_class("bi", type="bi"))
        image = str(own.image_of("s")["metadata"]["name"])
    own.api.merge("BackingImage", NAMESPACE, image, {"spec": {"minNumberOfCopies": copies}})
    poll(lambda: len(ready_nodes(own, image)) == copies, what=f"{copies} copies of {image}")
    return image, wanted


def begin_restore(release: Release, own: User, image: str) -> tuple[Node, Node]:
    """Have `s` restored where there is no copy; return receiver and sender in mid-transfer."""
    receiver = next(n for n in release.nodes if n.name not in ready_nodes(own, image))
    own.claim("copy", f"{IMAGE_MIB}Mi", snapshot="s", volumeMode="Block")
    own.pod("uses-copy", "copy", receiver.name)
    # One checkpoint is behind it: a new process goes on from there, the same from the last byte.
    poll(lambda: arrived_bytes(receiver) > 100 * MIB, what="a part of the image")
    sender = sender_to(release, receiver)
    assert sender is not None, "the transfer is over already"
    assert arrived_bytes(receiver) < IMAGE_MIB * MIB
    return receiver, sender


def end_restore(release: Release, own: User, receiver: Node, wanted: str) -> None:
    volume = own.bound("copy")
    assert sum_of(receiver.calls.mount(volume)) == wanted
    receiver.calls.unmount(volume)
    own.end_use("copy")


@pytest.mark.parametrize("copies", [1, 2])
def test_the_sender_dies_in_mid_transfer(release: Release, own: User, copies: int) -> None:
    """With another copy the receiver goes on there; without one, when the sender is back."""
    image, wanted = big_image(own, copies=copies)
    (receiver,) = [n for n in release.nodes if n.name not in ready_nodes(own, image)][:1]
    before = receiver.network.received_bytes
    with receiver.network.slowed(MIB_PER_S):
        receiver, sender = begin_restore(release, own, image)
        sender.driver.kill()
        receiver.network.hasten(MIB_PER_S_LATER)
        if copies == 1:
            sender.kill()
            sender.start()
        end_restore(release, own, receiver, wanted)
    assert sender.driver.is_running == (copies == 1)
    came = receiver.network.received_bytes - before
    assert came < 1.25 * IMAGE_MIB * MIB, f"{came >> 20} MiB came: it began anew"
    sender.kill()
    sender.start()
    nothing_left(release, own)


@pytest.mark.full
@pytest.mark.parametrize("copies", [1, 2])
def test_the_sender_is_cut_off_in_mid_transfer(release: Release, own: User, copies: int) -> None:
    image, wanted = big_image(own, copies=copies)
    (receiver,) = [n for n in release.nodes if n.name not in ready_nodes(own, image)][:1]
    before = receiver.network.received_bytes
    with receiver.network.slowed(MIB_PER_S):
        receiver, sender = begin_restore(release, own, image)
        sender.network.cut()
        receiver.network.hasten(MIB_PER_S_LATER)
        try:
            if copies == 1:
                stalled(receiver)
                sender.network.join()
            end_restore(release, own, receiver, wanted)
        finally:
            sender.network.join()
    came = receiver.network.received_bytes - before
    assert came < 1.25 * IMAGE_MIB * MIB, f"{came >> 20} MiB came: it began anew"
    nothing_left(release, own)


def stalled(receiver: Node) -> None:
    """Return when nothing has come for three seconds."""
    seen = (arrived_bytes(receiver), time.monotonic())

    def is_still() -> bool:
        nonlocal seen
        if arrived_bytes(receiver) != seen[0]:
            seen = (arrived_bytes(receiver), time.monotonic())
        return time.monotonic() - seen[1] > 3

    poll(is_still, what="a transfer that stands still")


def test_the_receiver_dies_in_mid_transfer(release: Release, own: User) -> None:
    image, wanted = big_image(own)
    (receiver,) = [n for n in release.nodes if n.name not in ready_nodes(own, image)][:1]
    before = receiver.network.received_bytes
    with receiver.network.slowed(MIB_PER_S):
        receiver, _ = begin_restore(release, own, image)
        receiver.kill()
        receiver.network.hasten(MIB_PER_S_LATER)
        receiver.start()
        end_restore(release, own, receiver, wanted)
    came = receiver.network.received_bytes - before
    # Since the last checkpoint it may have been 64 MiB, and as much on its way to the disk.
    assert came < 1.5 * IMAGE_MIB * MIB, f"{came >> 20} MiB came: it began anew"
    nothing_left(release, own)


# ---- The API server -----------------------------------------------------------------------------


def test_the_api_server_is_away_for_a_minute(release: Release, own: User) -> None:
    """Pods come and go where their volumes are; what was begun before is ready afterwards."""
    for name in ("a", "b"):
        own.claim(name, "320Mi")
    where, first = own.use("a", "node-0")
    _, second = own.use("b", "node-0")
    directory = where.calls.mount(first)
    wanted = fill(directory, 5)
    with standing_still(where.driver):
        begin_image(own, "s", "a")
        release.plane.kill("kube-apiserver")
        away_since = time.monotonic()
    for round_ in itertools.count():
        other = where.calls.mount(second)
        (other / "round").write_text(str(round_))
        assert digest(directory) == wanted
        where.calls.unmount(second)
        if time.monotonic() - away_since > AWAY_S:
            break
    where.calls.unmount(first)
    assert digest(where.calls.mount(first)) == wanted
    release.plane.restart("kube-apiserver")
    # With leader election, as elsewhere, these end when they cannot renew, and are started anew.
    for name in ("kube-controller-manager", "kube-scheduler"):
        release.plane.restart(name)
    is_done = tended(release, lambda: is_ready(snapshot_object(own, "s")))
    poll(is_done, timeout_s=90, what="a snapshot after the API server's return")
    where.calls.unmount(first)
    for name in ("a", "b"):
        own.end_use(name)
    restored_is(own, "s", "node-1", wanted)
    nothing_left(release, own)


def test_a_node_cannot_reach_the_api_server(release: Release, own: User) -> None:
    """It serves what it has, its peers too; what it is asked for meanwhile is done afterwards."""
    own.claim("source", "320Mi")
    node, volume = own.use("source", "node-0")
    directory = node.calls.mount(volume)
    wanted = fill(directory, 6)
    own.snapshot("s", "source", own.snapshot_class("bi", type="bi"))
    image = own.image_of("s")["metadata"]["name"]
    poll(lambda: checksum_is_known(own, image), what="a checksum")
    with node.network.without(release.plane.address):
        own.claim("copy", "400Mi", snapshot="s")
        with own.mounted("copy", "node-1") as elsewhere:
            assert digest(elsewhere) == wanted
        own.claim("late", "64Mi")
        own.pod("uses-late", "late", "node-0")
        poll(lambda: volumes_of(own, "late"), what="a volume that waits for its node")
        node.calls.unmount(volume)
        assert digest(node.calls.mount(volume)) == wanted
        late = own.api.get("PersistentVolumeClaim", own.namespace, "late")
        assert not is_bound(late)
    own.bound("late")
    node.calls.unmount(volume)
    nothing_left(release, own)


def checksum_is_known(own: User, image: str) -> bool:
    status = own.api.get("BackingImage", NAMESPACE, image).get("status") or {}
    return bool(status.get("checksum"))

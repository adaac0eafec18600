"""What operators do, and what happens to them: copies, eviction, full pools, nodes that go.

On a release of its own, whose nodes differ: two have tags, and one has a small pool. Everything
that a test takes away is back at its end.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.cluster.failures import by_and_by, crammed, mended, standing_still
from tests.e2e.cluster.release import NAMESPACE, Layout, Machine, Node, Release, of_its_own
from tests.e2e.cluster.test_failover import (
    CAPTURED,
    capacity_of,
    scatter,
    states_of,
    sum_of,
)
from tests.e2e.cluster.test_nodes import MIB, checksum_of, digest, fill, ready_nodes
from tests.e2e.cluster.users import User
from tests.fakes.image_server import serve
from tests.integration.daemon_process import poll
from tests.integration.service_api import Object, error_of, is_bound, is_ready

pytestmark = pytest.mark.root

#: `small` has room for its XFS and about 700 MiB.
LAYOUT = Layout(
    {
        "nodeGroups": [
            {"name": "fast", "nodeSelector": {"kind": "fast"}, "nodeTags": ["fast"]},
            {
                "name": "ssd",
                "nodeSelector": {"kind": "ssd"},
                "nodeTags": ["fast"],
                "diskTags": ["ssd"],
            },
            {"name": "small", "nodeSelector": {"kind": "small"}, "poolSize": "1G"},
        ],
        "node": {"poolSize": "2G"},
    },
    tuple(Machine(kind, {"kind": kind}) for kind in ("fast", "ssd", "small")),
    # As client-go behaves where the API server does not stream lists.
    environment={"KUBE_FEATURE_WatchListClient": "false"},
)
IMAGE_MIB = 8
#: A node is silent after a minute, which is noticed within ten seconds; who leads may change.
SILENCE_S = 150.0
AN_HOUR_AGO = (datetime.now(UTC) - timedelta(minutes=61)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module")
def release() -> Iterator[Release]:
    with of_its_own(LAYOUT) as made:
        yield made


@contextmanager
def downloaded(own: User, **spec: Any) -> Iterator[str]:
    """An image of the web; it and its copies are gone at the end."""
    name = download(own, "image", **spec)
    yield name
    own.api.delete("BackingImage", NAMESPACE, name)
    own.api.wait("BackingImage", NAMESPACE, name, lambda found: found is None)
    assert own.release.left() == []


def download(own: User, name: str, **spec: Any) -> str:
    """Have eight MiB of the web downloaded as an image; return its name."""
    name = f"{own.namespace}-{name}"
    image = {"apiVersion": "longhorn.io/v1beta2", "kind": "BackingImage"}
    with serve(os.urandom(IMAGE_MIB * MIB), address=own.release.plane.address) as served:
        given = {"sourceType": "download", "sourceParameters": {"url": served.url}, **spec}
        meta = {"name": name, "namespace": NAMESPACE}
        own.api.create({**image, "metadata": meta, "spec": given})
        checksum_of(own, name)
    return name


def change(own: User, image: str, **spec: Any) -> None:
    own.api.merge("BackingImage", NAMESPACE, image, {"spec": spec})


def copies_on(own: User, image: str, *nodes: str) -> None:
    """Wait until just these nodes have a complete copy."""
    poll(lambda: ready_nodes(own, image) == set(nodes), what=f"copies on {nodes}")


def condition(own: User, image: str, type_: str) -> Object:
    status = own.api.get("BackingImage", NAMESPACE, image).get("status") or {}
    return next((c for c in status.get("conditions", []) if c["type"] == type_), {})


def pool_of(release: Release, node: str) -> Object:
    return next(p for p in release.pools() if p["spec"]["nodeID"] == node)


# ---- Copies -------------------------------------------------------------------------------------


def test_copies_go_where_tags_allow_and_as_many_as_asked_for(own: User) -> None:
    with downloaded(own, nodeSelector=["fast"], minNumberOfCopies=2) as image:
        copies_on(own, image, "fast", "ssd")
        change(own, image, minNumberOfCopies=3)
        poll(
            lambda: condition(own, image, "EnoughCopies").get("reason") == "NoPool",
            what="a condition that says what is lacking",
        )
        assert "tags" in condition(own, image, "EnoughCopies")["message"]
        assert condition(own, image, "Ready")["status"] == "True"
        change(own, image, nodeSelector=[])
        copies_on(own, image, "fast", "ssd", "small")
    with downloaded(own, diskSelector=["ssd"]) as image:
        copies_on(own, image, "ssd")


def test_an_evicted_pool_gives_its_copies_away(release: Release, own: User) -> None:
    with downloaded(own, diskSelector=["ssd"]) as image:
        copies_on(own, image, "ssd")
        change(own, image, diskSelector=[], nodeSelector=["fast"])
        name = pool_of(release, "ssd")["metadata"]["name"]
        own.api.merge("Pool", NAMESPACE, name, {"spec": {"evictionRequested": True}})
        copies_on(own, image, "fast")
        assert release.node("ssd").pool.joinpath("images").exists()
        assert list(release.node("ssd").pool.glob("images/*/*")) == []
        own.api.merge("Pool", NAMESPACE, name, {"spec": {"evictionRequested": False}})


def test_an_evicted_copy_of_one_image_goes_once_another_is_made(
    release: Release, own: User
) -> None:
    """`evictionRequested` in an image's own map: of this image only, and never without one."""
    (pool,) = wish(release, "ssd")
    other = download(own, "other", diskFileSpecMap=wish(release, "ssd"))
    with downloaded(own, diskFileSpecMap=wish(release, "ssd"), nodeSelector=["fast"]) as image:
        copies_on(own, image, "ssd")
        with standing_still(release.node("fast").driver):
            change(own, image, diskFileSpecMap={pool: {"evictionRequested": True}})
            poll(lambda: nodes_of(own, image) == {"fast", "ssd"}, what="a copy to be made")
            assert ready_nodes(own, image) == {"ssd"}
            assert len(list(release.node("ssd").pool.glob(f"images/{image}/*"))) == 1
        seen: list[set[str]] = []

        def has_moved() -> bool:
            seen.append(ready_nodes(own, image))
            return seen[-1] == {"fast"}

        poll(has_moved, what="a copy that has moved")
        assert all(seen), "there was a moment without any copy"
        assert list(release.node("ssd").pool.glob(f"images/{image}/*")) == []
        assert ready_nodes(own, other) == {"ssd"}
        own.api.delete("BackingImage", NAMESPACE, other)
        own.api.wait_gone("BackingImage", NAMESPACE, other)


def nodes_of(own: User, image: str) -> set[str]:
    """Return the nodes that have a copy of an image, or shall have one."""
    copies = own.api.list("ImageCopy", NAMESPACE)
    return {c["spec"]["nodeID"] for c in copies if c["spec"]["image"] == image}


def test_a_copy_that_nobody_uses_goes_after_an_hour(release: Release, own: User) -> None:
    """The hour is made by dating back what the cluster has noted; the last copy stays."""
    with downloaded(own, nodeSelector=["fast"], minNumberOfCopies=2) as image:
        copies_on(own, image, "fast", "ssd")
        change(own, image, minNumberOfCopies=1)
        poll(lambda: len(noted(own, image)) == 2, what="since when nobody uses the copies")
        for copy in own.api.list("ImageCopy", NAMESPACE):
            date_back(
                own, "ImageCopy", copy["metadata"]["name"], {"lastStateTransitionTime": AN_HOUR_AGO}
            )
        (one, _) = noted(own, image)
        date_back(own, "BackingImage", image, {"diskLastRefAtMap": {one: AN_HOUR_AGO}})
        gone = next(p["spec"]["nodeID"] for p in release.pools() if p["metadata"]["name"] == one)
        copies_on(own, image, *({"fast", "ssd"} - {gone}))


def noted(own: User, image: str) -> dict[str, str]:
    status = own.api.get("BackingImage", NAMESPACE, image).get("status") or {}
    return dict(status.get("diskLastRefAtMap") or {})


def date_back(own: User, kind: str, name: str, status: Object) -> None:
    path = own.api.path(kind, NAMESPACE, name) + "/status"
    headers = {"Content-Type": "application/merge-patch+json"}
    answer = own.api.client.patch(path, json={"status": status}, headers=headers)
    assert answer.status_code == 200, answer.text


# ---- Space --------------------------------------------------------------------------------------


def test_a_full_pool_takes_nothing_and_goes_on_when_there_is_room(
    release: Release, own: User
) -> None:
    small = release.node("small")
    own.claim("filler", "600Mi", volumeMode="Block", node="small")
    own.claim("big", "400Mi", volumeMode="Block", node="fast")
    for name in ("filler", "big"):
        where, volume = own.use(name)
        write_all(where.calls.mount(volume))
        where.calls.unmount(volume)
        own.end_use(name)
    own.snapshot("s", "big", own.snapshot_class("bi", type="bi"))
    image = own.image_of("s")["metadata"]["name"]
    checksum_of(own, image)
    poll(lambda: available(release, "small") < 400 * MIB, what="a pool that says it is full")
    own.claim("late", "400Mi", volumeMode="Block", snapshot="s", node="small")
    poll(lambda: said_of(own, "late", "node small has "), what="an event that says why it waits")
    assert not is_bound(own.api.get("PersistentVolumeClaim", own.namespace, "late"))
    assert ready_nodes(own, image) == {"fast"}
    assert list(small.pool.glob("staging/*/*")) == []
    own.claim("elsewhere", "400Mi", volumeMode="Block", snapshot="s", node="fast")
    own.bound("elsewhere")
    for name in ("filler", "late"):
        own.api.delete("PersistentVolumeClaim", own.namespace, name)
    poll(lambda: available(release, "small") > 500 * MIB, what="a pool with room again")
    own.claim("later", "400Mi", volumeMode="Block", snapshot="s", node="small")
    assert release.node_of(own.bound("later")["spec"]["csi"]["volumeHandle"]) is small


def test_an_export_in_a_full_pool_goes_on_when_there_is_room(release: Release, own: User) -> None:
    with source_on(own, "small") as device:
        wanted = sum_of(device)
        with crammed(release.node("small")):
            own.snapshot("s", "source", own.snapshot_class("bi", type="bi", export_type="qcow2"))
            own.api.wait("VolumeSnapshot", own.namespace, "s", lambda s: "is full" in error_of(s))
            assert not is_ready(own.api.get("VolumeSnapshot", own.namespace, "s"))
            assert sum_of(device) == wanted
        own.ready("s")
    restored_is(own, wanted)


@pytest.mark.full
def test_an_export_is_kept_in_a_pool_that_becomes_full_in_its_midst(
    release: Release, own: User
) -> None:
    """Its content is fixed, and made an image of when there is room."""
    small, image = release.node("small"), f"{own.namespace}-image"
    with source_on(own, "small", blocks=16_000) as device, contextlib.ExitStack() as full:
        wanted = sum_of(device)
        export(own, image, own.bound("source")["spec"]["csi"]["volumeHandle"])
        by_and_by(small.driver, lambda: CAPTURED & states_of(own, image), what="a capture")
        try:
            assert "ready" not in states_of(own, image), "the export was over before"
            full.enter_context(crammed(small))
        finally:
            os.killpg(small.driver.pid, signal.SIGCONT)
        poll(lambda: condition(own, image, "Failed").get("reason") == "NoSpace", what="NoSpace")
        full.close()
        write_all(device)
        copies_on(own, image, "small")
    (base,) = small.pool.glob(f"images/{image}/*/base.raw")
    assert sum_of(base) == wanted
    own.api.delete("BackingImage", NAMESPACE, image)


def export(own: User, image: str, volume: str) -> None:
    """Ask for an image of a volume."""
    kind = {"apiVersion": "longhorn.io/v1beta2", "kind": "BackingImage"}
    parameters = {"volume-name": volume, "export-type": "qcow2"}
    spec = {"sourceType": "export-from-volume", "sourceParameters": parameters}
    own.api.create({**kind, "metadata": {"name": image, "namespace": NAMESPACE}, "spec": spec})


@contextmanager
def source_on(own: User, node: str, *, blocks: int = 2_000) -> Iterator[Path]:
    """The device of claim `source`, with random bytes in so many extents."""
    own.claim("source", "128Mi", volumeMode="Block", node=node)
    with own.mounted("source") as device:
        scatter(device, 128, blocks=blocks)
        yield device


def restored_is(own: User, wanted: str) -> None:
    own.claim("copy", "128Mi", snapshot="s", volumeMode="Block")
    with own.mounted("copy", "fast") as device:
        assert sum_of(device) == wanted


def write_all(device: Path) -> None:
    """Fill a block device with what no file system shares."""
    with device.open("r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        for _ in range(size // (4 * MIB)):
            file.write(os.urandom(4 * MIB))
        os.fsync(file.fileno())


def available(release: Release, node: str) -> int:
    return int(pool_of(release, node)["status"]["availableBytes"])


def said_of(own: User, claim: str, text: str) -> list[str]:
    """Return what warnings about a claim say, if it holds a text."""
    return [
        event["message"]
        for event in own.api.list("Event", own.namespace)
        if event["involvedObject"].get("name") == claim
        and event["type"] == "Warning"
        and text in event["message"]
    ]


# ---- Nodes that go ------------------------------------------------------------------------------


def test_a_node_goes_for_good_and_comes_back(release: Release, own: User) -> None:
    """Silent: what is deleted there waits. Forgotten: it goes. Back: its data is named and kept."""
    lost = release.node("small")
    with mended(release), downloaded(own, nodeSelector=["fast"]) as image:
        (home,) = ready_nodes(own, image)
        other = next(name for name in ("fast", "ssd") if name != home)
        change(own, image, diskFileSpecMap=wish(release, "small"))
        copies_on(own, image, home, "small")
        doomed = delete_all_of(own, lost)
        change(own, image, minNumberOfCopies=2)
        for kind, name in doomed.items():
            poll(
                partial(says_silent, own, kind, name),
                timeout_s=SILENCE_S,
                what=f"a {kind} that says what its deletion waits for",
            )
        poll(lambda: {home, other} <= ready_nodes(own, image), what="a copy elsewhere")
        forget(release, lost)
        for kind, name in doomed.items():
            own.api.wait(kind, NAMESPACE, name, lambda found: found is None)
        poll(lambda: not own.api.list("PersistentVolume"), what="no PersistentVolume")
        data = lost.pool / "volumes" / doomed["Volume"] / "volume.raw"
        assert data.exists()
        remember(release, lost)
        poll(lambda: len(release.pools()) == 3, what="the pool again")
        for name in (doomed["Volume"], doomed["Snapshot"]):
            poll(partial(is_logged, lost, name), what=f"{name} in the log")
        assert data.exists()
        clear(lost)


def wish(release: Release, node: str) -> Object:
    """Return what asks for a copy on a node, as in spec.diskFileSpecMap."""
    return {str(pool_of(release, node)["metadata"]["name"]): {"dataEngine": "v1"}}


def delete_all_of(own: User, node: Node) -> dict[str, str]:
    """Have a volume, a snapshot and an image on a node, kill its pod, and delete them.

    Return our objects of them, which stay until the node is back or forgotten, by their kinds.
    """
    own.claim("kept", "64Mi")
    with own.mounted("kept", node.name) as directory:
        fill(directory, 9)
    handle = own.bound("kept")["spec"]["csi"]["volumeHandle"]
    own.snapshot("s", "kept", own.snapshot_class("snap", type="snap"))
    own.ready("s")
    (snapshot,) = own.api.list("Snapshot", NAMESPACE)
    image = download(own, "doomed", diskFileSpecMap=wish(own.release, node.name))
    (copy,) = (c for c in own.api.list("ImageCopy", NAMESPACE) if c["spec"]["image"] == image)
    node.kill()
    own.api.delete("BackingImage", NAMESPACE, image)
    for kind, name in (("VolumeSnapshot", "s"), ("PersistentVolumeClaim", "kept")):
        own.api.delete(kind, own.namespace, name)
    return {
        "Volume": handle,
        "Snapshot": snapshot["metadata"]["name"],
        "ImageCopy": copy["metadata"]["name"],
    }


def says_silent(own: User, kind: str, name: str) -> bool:
    found = own.api.find(kind, NAMESPACE, name) or {}
    return "node small has not reported" in (found.get("status") or {}).get("message", "")


def is_logged(node: Node, text: str) -> bool:
    return text in node.driver.said()


def forget(release: Release, node: Node) -> None:
    """Take a machine out of the cluster."""
    release.plane.kubectl("delete", "node", node.name)
    release.plane.kubectl("delete", "csinode", node.name, "--ignore-not-found")


def remember(release: Release, node: Node) -> None:
    """The machine joins again, and its pod starts."""
    release.join(node)
    node.kill()
    node.start()


def clear(node: Node) -> None:
    """Remove what has no object, as its operator would."""
    for kind in ("volumes", "snapshots", "images"):
        for path in node.pool.glob(f"{kind}/*"):
            shutil.rmtree(path)


def test_a_claim_deleted_while_its_node_is_away_goes_when_that_is_back(
    release: Release, own: User
) -> None:
    node = release.node("ssd")
    own.claim("a", "64Mi")
    with own.mounted("a", "ssd") as directory:
        fill(directory, 11)
    volume = own.bound("a")
    handle = volume["spec"]["csi"]["volumeHandle"]
    data = node.pool / "volumes" / handle / "volume.raw"
    with mended(release):
        node.kill()
        own.api.delete("PersistentVolumeClaim", own.namespace, "a")
        own.api.wait_gone("PersistentVolumeClaim", own.namespace, "a")
        poll(lambda: is_going(own, handle), what="a volume whose deletion waits")
        assert own.api.find("PersistentVolume", "", volume["metadata"]["name"]) is not None
        assert data.exists()
    own.api.wait_gone("Volume", NAMESPACE, handle)
    assert not data.exists()
    own.api.wait_gone("PersistentVolume", "", volume["metadata"]["name"])


@pytest.mark.full
def test_a_claim_deleted_after_its_node_was_forgotten_goes(release: Release, own: User) -> None:
    """No pool says any more that it is silent; what has none for a minute is let go as well."""
    node = release.node("ssd")
    own.claim("a", "64Mi")
    with own.mounted("a", "ssd") as directory:
        fill(directory, 12)
    volume = own.bound("a")
    handle = volume["spec"]["csi"]["volumeHandle"]
    with mended(release):
        node.kill()
        forget(release, node)
        poll(lambda: len(release.pools()) == 2, timeout_s=SILENCE_S, what="a pool that is given up")
        own.api.delete("PersistentVolumeClaim", own.namespace, "a")
        poll(
            lambda: own.api.find("Volume", NAMESPACE, handle) is None,
            timeout_s=SILENCE_S,
            what="no volume",
        )
        own.api.wait_gone("PersistentVolume", "", volume["metadata"]["name"])
        remember(release, node)
        poll(lambda: len(release.pools()) == 3, what="the pool again")
        poll(partial(is_logged, node, handle), what=f"{handle} in the log")
        assert (node.pool / "volumes" / handle / "volume.raw").exists()
        clear(node)


def is_going(own: User, volume: str) -> bool:
    return "deletionTimestamp" in own.api.get("Volume", NAMESPACE, volume)["metadata"]


def test_volumes_of_a_silent_node_wait_for_it(release: Release, own: User) -> None:
    own.claim("a", "64Mi")
    with own.mounted("a", "ssd") as directory:
        wanted = fill(directory, 10)
    with mended(release):
        release.node("ssd").kill()
        own.snapshot("s", "a", own.snapshot_class("bi", type="bi"))
        more = {"spec": {"resources": {"requests": {"storage": "96Mi"}}}}
        own.api.merge("PersistentVolumeClaim", own.namespace, "a", more)
        ready = "--for=jsonpath={.status.readyToUse}=true"
        where = f"--namespace={own.namespace}"
        waited = release.plane.try_kubectl("wait", "volumesnapshot/s", where, ready, "--timeout=3s")
        assert "timed out" in waited.stderr
    own.ready("s")
    name = own.bound("a")["metadata"]["name"]
    poll(lambda: capacity_of(own, name) == "96Mi", what="a volume that has grown")
    with own.mounted("a") as directory:
        assert digest(directory) == wanted


# ---- Peers --------------------------------------------------------------------------------------


def test_a_damaged_certificate_is_made_anew(release: Release, own: User) -> None:
    """Whoever leads next mends it, and copies go from node to node again."""
    spoilt = base64.b64encode(b"no certificate").decode()
    own.api.merge("Secret", NAMESPACE, "shorthorn-peer-tls", {"data": {"tls.crt": spoilt}})
    with mended(release):
        release.leader().kill()
        poll(lambda: certificate(own) != spoilt, what="another certificate")
    with downloaded(own, nodeSelector=["fast"], minNumberOfCopies=2) as image:
        copies_on(own, image, "fast", "ssd")


def certificate(own: User) -> str:
    return str(own.api.get("Secret", NAMESPACE, "shorthorn-peer-tls")["data"]["tls.crt"])

"""Many claims from one image over three nodes, through the real external-provisioner.

And what one snapshot and one restore take, with the driver's own share. The figures are printed
(`pytest -s`), and docs/performance.md tells them. On a release of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest
from tests.e2e.cluster.failures import leader_of
from tests.e2e.cluster.release import NAMESPACE, Release, of_its_own
from tests.e2e.cluster.test_nodes import MIB, checksum_of, fill, ready_nodes
from tests.e2e.cluster.users import User
from tests.integration.daemon_process import poll
from tests.integration.service_api import Object, is_bound, is_ready

pytestmark = pytest.mark.root

CLAIMS = 300
IMAGE_MIB = 128
VOLUME_MIB = 2048
PATIENCE_S = 200.0
#: Where the sidecars tell their metrics, as the chart has it.
_METRICS = {"csi-provisioner": 9811, "csi-snapshotter": 9812}
_ONE_CALL = 'csi_sidecar_operations_seconds_{what}{{[^}}]*method_name="/csi.v1.Controller/{method}"'


@pytest.fixture(scope="module")
def release() -> Iterator[Release]:
    with of_its_own() as made:
        yield made


class Moments:
    """When each object of a kind in a namespace first was so, by the clock of this process."""

    def __init__(self, user: User, kind: str, is_so: Callable[[Object], bool]) -> None:
        self.seen: dict[str, float] = {}
        self._client = user.api.client
        self._path = user.api.path(kind, user.namespace)
        self._is_so = is_so
        self._is_over = False
        self._version = self._client.get(self._path).json()["metadata"]["resourceVersion"]

    def follow(self) -> None:
        """Look until `end`."""
        query = {"watch": "1", "resourceVersion": self._version}
        with self._client.stream("GET", self._path, params=query, timeout=PATIENCE_S) as lines:
            for line in lines.iter_lines():
                event = json.loads(line)
                found = event["object"]
                if event["type"] != "DELETED" and self._is_so(found):
                    self.seen.setdefault(found["metadata"]["name"], time.monotonic())
                if self._is_over:
                    return

    def end(self) -> None:
        self._is_over = True


@contextlib.contextmanager
def moments(user: User, kind: str, is_so: Callable[[Object], bool]) -> Iterator[Moments]:
    """Watch while the block runs; the watch itself ends with the next event, or by its timeout."""
    made = Moments(user, kind, is_so)
    threading.Thread(target=made.follow, daemon=True).start()
    try:
        yield made
    finally:
        made.end()


def test_many_claims_from_one_image(release: Release, own: User) -> None:
    own.claim("source", "192Mi")
    with own.mounted("source", "node-0") as directory:
        fill(directory, 7, megabytes=IMAGE_MIB)
        own.snapshot("s", "source", own.snapshot_class("bi", type="bi", export_type="qcow2"))
        image = own.image_of("s")["metadata"]["name"]
    checksum_of(own, image)
    before = [node.network.received_bytes for node in release.nodes]
    spent, _ = spent_s(release, "csi-provisioner", "CreateVolume")
    made: dict[str, float] = {}
    with moments(own, "PersistentVolumeClaim", is_bound) as bound:
        for index in range(CLAIMS):
            name = f"c{index}"
            made[name] = time.monotonic()
            own.claim(name, "192Mi", snapshot="s", node=release.nodes[index % 3].name)
        poll(
            lambda: made.keys() <= bound.seen.keys(),
            timeout_s=PATIENCE_S,
            what=f"{CLAIMS} bound claims",
        )
    took = sorted(bound.seen[name] - made[name] for name in made)
    ours, calls = spent_s(release, "csi-provisioner", "CreateVolume")
    whole_s = max(bound.seen.values()) - min(made.values())
    came = [
        node.network.received_bytes - was for node, was in zip(release.nodes, before, strict=True)
    ]
    copies = [c for c in own.api.list("ImageCopy", NAMESPACE) if c["spec"]["image"] == image]
    assert len(copies) == 3
    assert ready_nodes(own, image) == {node.name for node in release.nodes}
    assert max(came) < 2 * IMAGE_MIB * MIB, f"{came} bytes came: an image more than once"
    began = time.monotonic()
    own.remove()
    poll(lambda: own_volumes(own) == [] and release.left() == [], timeout_s=PATIENCE_S)
    gone_s = time.monotonic() - began
    print(
        f"\n{CLAIMS} claims: {CLAIMS / whole_s:.1f} each second; creation to bound"
        f" (the driver {(ours - spent) / CLAIMS:.2f} s, {calls:.0f} calls)"
        f" p50 {took[CLAIMS // 2]:.2f} s, p99 {took[CLAIMS * 99 // 100]:.2f} s,"
        f" most {took[-1]:.2f} s; deleted: {CLAIMS / gone_s:.1f} each second;"
        f" came to the nodes: {[count // MIB for count in came]} MiB"
    )


def own_volumes(own: User) -> list[Object]:
    volumes = own.api.list("PersistentVolume")
    return [v for v in volumes if v["spec"]["claimRef"]["namespace"] == own.namespace]


def test_what_one_snapshot_and_one_restore_take(release: Release, own: User) -> None:
    cls = own.snapshot_class("bi", type="bi", export_type="qcow2")
    own.claim("source", f"{VOLUME_MIB}Mi", volumeMode="Block")
    with own.mounted("source", "node-0") as device:
        with device.open("r+b", buffering=0) as file:
            for _ in range(VOLUME_MIB // 16):
                file.write(os.urandom(16 * MIB))
            os.fsync(file.fileno())
        for round_ in range(5):
            name = f"s{round_}"
            with moments(own, "VolumeSnapshot", is_ready) as ready:
                say(
                    release,
                    own,
                    "csi-snapshotter",
                    "CreateSnapshot",
                    name,
                    ready,
                    shot(own, name, cls),
                )
            checksum_of(own, own.image_of(name)["metadata"]["name"])
            with moments(own, "PersistentVolumeClaim", is_bound) as bound:
                name = f"r{round_}"
                manifest = restore(own, name, f"s{round_}")
                say(release, own, "csi-provisioner", "CreateVolume", name, bound, manifest)
    own.remove()
    poll(lambda: release.left() == [], timeout_s=PATIENCE_S, what="empty pools")


def shot(own: User, name: str, cls: str) -> Object:
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name, "namespace": own.namespace},
        "spec": {
            "volumeSnapshotClassName": cls,
            "source": {"persistentVolumeClaimName": "source"},
        },
    }


def restore(own: User, name: str, snapshot: str) -> Object:
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": own.namespace,
            "annotations": {"volume.kubernetes.io/selected-node": "node-0"},
        },
        "spec": {
            "storageClassName": "longhorn",
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Block",
            "resources": {"requests": {"storage": f"{VOLUME_MIB}Mi"}},
            "dataSource": source,
        },
    }


def say(
    release: Release,
    own: User,
    sidecar: str,
    method: str,
    name: str,
    moments_: Moments,
    manifest: Object,
) -> None:
    """Apply an object; print what it took until its moment, and how much of it our calls took."""
    spent, calls = spent_s(release, sidecar, method)
    began = time.monotonic()
    own.apply(manifest)
    applied = time.monotonic()
    poll(lambda: name in moments_.seen, timeout_s=PATIENCE_S, what=name, interval_s=0.002)
    ours, more = spent_s(release, sidecar, method)
    print(
        f"\n{VOLUME_MIB} MiB, {method}: {moments_.seen[name] - began:.3f} s from the start of"
        f" kubectl apply, of which kubectl {applied - began:.3f} s, and"
        f" {ours - spent:.3f} s in {more - calls:.0f} calls of the driver"
    )


def spent_s(release: Release, sidecar: str, method: str) -> tuple[float, float]:
    """Return the seconds that the driver's answers to a sidecar took so far, and their number."""
    pod = leader_of(release, sidecar)
    url = f"http://{pod.network.address}:{_METRICS[sidecar]}/metrics"
    text = httpx2.get(url, trust_env=False, timeout=10).text
    found = []
    for what in ("sum", "count"):
        pattern = _ONE_CALL.format(what=what, method=method) + r"[^}]*\} (\S+)"
        found.append(sum(float(value) for value in re.findall(pattern, text)))
    return found[0], found[1]

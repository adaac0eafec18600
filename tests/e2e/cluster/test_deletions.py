"""Deletion policies, in the orders in which users delete: nothing is lost, and nothing stays.

Dynamic, pre-provisioned and on-demand contents, each with Delete and Retain. Every test ends with
empty pools.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.cluster.release import DRIVER, NAMESPACE, Release
from tests.e2e.cluster.test_nodes import digest, fill
from tests.e2e.cluster.users import User
from tests.fakes.image_server import serve
from tests.integration.daemon_process import poll

pytestmark = pytest.mark.root

SIZE = "64Mi"


class Owner:
    """A user with a volume, a snapshot of it and a claim from that, who deletes them by hand."""

    def __init__(self, user: User, policy: str) -> None:
        self.user = user
        self.policy = policy
        self.cls = ""
        self.wanted = ""
        self.image = ""
        self.content = f"{user.namespace}-content"

    def make_volume(self) -> None:
        self.user.claim("source", SIZE)
        with self.user.mounted("source", "node-0") as directory:
            self.wanted = fill(directory, 5, megabytes=4)

    def snapshot_it(self) -> None:
        """Have the snapshot's content and image made for it."""
        self.cls = self.user.snapshot_class("c", self.policy, type="bi", export_type="qcow2")
        self.user.snapshot("s", "source", self.cls)
        self.image = self.user.image_of("s")["metadata"]["name"]
        self.content = self.user.ready("s")["status"]["boundVolumeSnapshotContentName"]

    def provide(self, handle: str) -> None:
        """Make content and snapshot of a handle by hand."""
        reference = {"name": "s", "namespace": self.user.namespace}
        group = "snapshot.storage.k8s.io/v1"
        spec: dict[str, Any] = {
            "driver": DRIVER,
            "deletionPolicy": self.policy,
            "source": {"snapshotHandle": handle},
            "volumeSnapshotRef": reference,
        }
        self.user.apply(
            [
                {
                    "apiVersion": group,
                    "kind": "VolumeSnapshotContent",
                    "metadata": {"name": self.content},
                    "spec": spec,
                },
                {
                    "apiVersion": group,
                    "kind": "VolumeSnapshot",
                    "metadata": reference,
                    "spec": {"source": {"volumeSnapshotContentName": self.content}},
                },
            ]
        )
        self.user.ready("s")

    def restore(self) -> None:
        self.user.claim("copy", SIZE, snapshot="s")
        self.check_copy()

    def check_copy(self) -> None:
        with self.user.mounted("copy") as directory:
            assert digest(directory) == self.wanted

    def delete(self, kind: str, name: str, *, wait: bool = True) -> None:
        place = () if kind in ("content", "class") else (f"--namespace={self.user.namespace}",)
        kinds = {
            "claim": "persistentvolumeclaim",
            "snapshot": "volumesnapshot",
            "content": "volumesnapshotcontent",
            "class": "volumesnapshotclass",
        }
        words = ("delete", kinds[kind], name, f"--wait={str(wait).lower()}", *place)
        self.user.release.plane.kubectl(*words)

    def check_image(self) -> None:
        """Look what the policy has left, and take that away as an administrator would."""
        api, content = self.user.api, self.content
        if self.policy == "Delete":
            api.wait_gone("VolumeSnapshotContent", "", content)
            api.wait_gone("BackingImage", NAMESPACE, self.image)
            return
        if api.find("VolumeSnapshotContent", "", content) is not None:
            self.delete("content", content)
        assert (
            api.get("BackingImage", NAMESPACE, self.image)["metadata"].get("deletionTimestamp")
            is None
        )
        api.delete("BackingImage", NAMESPACE, self.image)


@pytest.fixture(params=["Delete", "Retain"])
def owner(release: Release, own: User, request: pytest.FixtureRequest) -> Iterator[Owner]:
    made = Owner(own, request.param)
    yield made
    own.clear()
    if made.cls:
        own.api.delete("VolumeSnapshotClass", "", made.cls)
    poll(lambda: not release.left(), what=f"empty pools, and not {release.left()}")


@pytest.mark.parametrize("first", ["claim", "snapshot", "class", "content"])
def test_a_snapshot_of_a_claim(owner: Owner, first: str) -> None:
    owner.make_volume()
    owner.snapshot_it()
    owner.restore()
    if first == "claim":
        owner.delete("claim", "source")
        owner.delete("snapshot", "s")
        owner.check_copy()
        owner.delete("claim", "copy")
    elif first == "content":
        # It waits for its snapshot.
        owner.delete("content", owner.content, wait=False)
        assert owner.user.image_of("s")["metadata"]["name"] == owner.image
        owner.delete("snapshot", "s")
        owner.user.api.wait_gone("VolumeSnapshotContent", "", owner.content)
    else:
        if first == "class":
            owner.delete("class", owner.cls)
        owner.delete("snapshot", "s")
    owner.check_image()
    if first != "claim":
        owner.check_copy()
        owner.delete("claim", "source")
        owner.delete("claim", "copy")


def test_a_snapshot_that_is_deleted_with_its_claim_at_once(owner: Owner) -> None:
    owner.make_volume()
    owner.snapshot_it()
    for kind, name in (("claim", "source"), ("snapshot", "s")):
        owner.delete(kind, name, wait=False)
    owner.user.api.wait_gone("VolumeSnapshot", owner.user.namespace, "s")
    owner.user.api.wait_gone("PersistentVolumeClaim", owner.user.namespace, "source")
    owner.check_image()


@pytest.mark.parametrize("first", ["claim", "snapshot", "content", "image"])
def test_a_content_of_an_image_that_exists(owner: Owner, first: str) -> None:
    owner.make_volume()
    handle = handle_of(owner)
    owner.image = f"{owner.user.namespace}-image"
    make_exported_image(owner)
    owner.provide(handle)
    owner.restore()
    if first == "claim":
        owner.delete("claim", "copy")
        owner.delete("snapshot", "s")
    elif first == "content":
        owner.delete("content", owner.content, wait=False)
        owner.delete("snapshot", "s")
    else:
        if first == "image":
            owner.user.api.delete("BackingImage", NAMESPACE, owner.image)
            owner.user.api.wait_gone("BackingImage", NAMESPACE, owner.image)
        owner.delete("snapshot", "s")
    if first == "image":
        forget_content(owner)
    else:
        owner.check_image()
    if first != "claim":
        owner.check_copy()
        owner.delete("claim", "copy")
    owner.delete("claim", "source")


@pytest.mark.parametrize("is_used", [False, True])
def test_an_export_on_demand(owner: Owner, is_used: bool) -> None:
    owner.make_volume()
    owner.image = f"{owner.user.namespace}-image"
    owner.provide(handle_of(owner))
    if is_used:
        owner.restore()
        owner.delete("claim", "source")
    owner.delete("snapshot", "s")
    if is_used:
        owner.check_image()
        owner.check_copy()
        owner.delete("claim", "copy")
    else:
        forget_content(owner)
        owner.delete("claim", "source")


def test_a_download_on_demand(release: Release, owner: Owner) -> None:
    owner.image = f"{owner.user.namespace}-image"
    with serve(bytes(8 << 20), address=release.plane.address) as served:
        owner.provide(
            f"bi://backing?backingImageDataSourceType=download&backingImage={owner.image}"
            f"&url={served.url}"
        )
        owner.user.claim("copy", SIZE, snapshot="s", volumeMode="Block")
        with owner.user.mounted("copy") as device, device.open("rb") as file:
            assert file.read(1 << 20) == bytes(1 << 20)
        owner.delete("claim", "copy")
        owner.delete("snapshot", "s")
        owner.check_image()


def handle_of(owner: Owner) -> str:
    volume = owner.user.bound("source")["spec"]["csi"]["volumeHandle"]
    image = f"{owner.user.namespace}-image"
    return (
        f"bi://backing?backingImageDataSourceType=export-from-volume&backingImage={image}"
        f"&volume-name={volume}&export-type=raw"
    )


def make_exported_image(owner: Owner) -> None:
    """Make the image by hand, and wait until it has its bytes."""
    volume = owner.user.bound("source")["spec"]["csi"]["volumeHandle"]
    owner.user.api.create(
        {
            "apiVersion": "longhorn.io/v1beta2",
            "kind": "BackingImage",
            "metadata": {"name": owner.image, "namespace": NAMESPACE},
            "spec": {
                "sourceType": "export-from-volume",
                "sourceParameters": {"volume-name": volume, "export-type": "raw"},
            },
        }
    )
    place = (f"--namespace={NAMESPACE}", "--for=condition=Ready", "--timeout=100s")
    owner.user.release.plane.kubectl("wait", f"backingimage/{owner.image}", *place)


def forget_content(owner: Owner) -> None:
    """See that a content without an image goes, or take it away where it stays."""
    if owner.policy == "Retain":
        owner.delete("content", owner.content)
    owner.user.api.wait_gone("VolumeSnapshotContent", "", owner.content)
    assert owner.user.api.find("BackingImage", NAMESPACE, owner.image) is None
